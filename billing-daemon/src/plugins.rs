//! The job kinds: those that ship, and those of plugins.

use billing_jobs::Services;
use billing_scheduler::Registry;

/// Functions that declare further job kinds.
#[derive(Clone, Debug, Default)]
pub struct Plugins {
    register: Vec<fn(&mut Registry)>,
}

impl Plugins {
    /// Returns no plugins: only the job kinds that ship.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a plugin.
    #[must_use]
    pub fn with(mut self, register: fn(&mut Registry)) -> Self {
        self.register.push(register);
        self
    }
}

/// Returns the registry of all job kinds, whose jobs work with `services`.
pub(crate) fn registry(services: &Services, plugins: &Plugins) -> Registry {
    declared(Some(services), plugins)
}

/// Returns the registry of all job kinds without a database, which checks the parameters of jobs.
pub(crate) fn kinds_for_validation(plugins: &Plugins) -> Registry {
    declared(None, plugins)
}

fn declared(services: Option<&Services>, plugins: &Plugins) -> Registry {
    let mut registry = Registry::new();
    billing_jobs::register(&mut registry, services);
    billing_kinds::register(&mut registry);
    for register in &plugins.register {
        register(&mut registry);
    }
    registry
}
