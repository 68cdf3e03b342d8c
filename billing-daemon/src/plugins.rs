//! The kinds of jobs: those that ship, and those of plugins.

use billing_jobs::Services;
use billing_scheduler::Registry;

/// Functions that make further kinds of jobs known.
#[derive(Clone, Debug, Default)]
pub struct Plugins {
    register: Vec<fn(&mut Registry)>,
}

impl Plugins {
    /// Only the jobs that ship.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// With one more plugin.
    #[must_use]
    pub fn with(mut self, register: fn(&mut Registry)) -> Self {
        self.register.push(register);
        self
    }

    fn register(&self, registry: &mut Registry) {
        for register in &self.register {
            register(registry);
        }
    }
}

/// Returns the registry of all job kinds.
pub(crate) fn registry(services: &Services, plugins: &Plugins) -> Registry {
    let mut registry = Registry::new();
    billing_jobs::register(&mut registry, services);
    billing_kinds::register(&mut registry);
    plugins.register(&mut registry);
    registry
}
