//! Checks one variant of the protocol, or all of them, in a world as large as you like, and prints the table.

use std::time::Instant;

use clap::Parser;
use protocol_model::{
    check::{explore, shortest},
    variant::{Size, VARIANTS, Variant},
};

/// Checks the protocol exhaustively.
#[derive(Debug, Parser)]
struct Options {
    /// Which variant, or those whose name contains this.
    #[arg(default_value = "")]
    variant: String,
    /// How many daemons there are, instead of as many as the variant needs.
    #[arg(long)]
    daemons: Option<usize>,
    /// How many instances.
    #[arg(long)]
    instances: Option<usize>,
    /// How many hours.
    #[arg(long)]
    hours: Option<u8>,
    /// How many threads check.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Print the shortest way to break what is broken.
    #[arg(long)]
    steps: bool,
}

fn main() {
    let options = Options::parse();
    println!(
        "| variant | | daemons, instances, hours | states | seconds | result |\n|---|---|---|---|---|---|"
    );
    let named = |variant: &&Variant| variant.name == options.variant;
    let alike = |variant: &&Variant| variant.name.contains(&options.variant);
    let exact = VARIANTS.iter().any(|variant| named(&variant));
    for variant in VARIANTS.iter().filter(|variant| if exact { named(variant) } else { alike(variant) }) {
        check(variant, &options);
    }
}

fn check(variant: &Variant, options: &Options) {
    let size = Size {
        daemons: options.daemons.unwrap_or(variant.size.daemons),
        instances: options.instances.unwrap_or(variant.size.instances),
        hours: options.hours.unwrap_or(variant.size.hours),
    };
    let started = Instant::now();
    let finding = explore(variant, size, options.threads);
    println!(
        "| `{}` | {} | {}, {}, {} | {} | {:.1} | {} |",
        variant.name,
        variant.what,
        size.daemons,
        size.instances,
        size.hours,
        finding.states,
        started.elapsed().as_secs_f64(),
        if finding.broken.is_empty() {
            "holds".to_owned()
        } else {
            format!("broken: {}", finding.broken.join("; "))
        },
    );
    for name in finding.impossible.iter().filter(|_| variant.breaks.is_none()) {
        println!("never happens: {name}");
    }
    if options.steps {
        for name in finding.broken {
            println!("\n{name}?");
            for step in shortest(variant, size, name).unwrap_or_default() {
                println!("- {step}");
            }
            println!();
        }
    }
}
