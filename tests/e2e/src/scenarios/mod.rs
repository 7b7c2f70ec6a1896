//! What is shown, each in a namespace of its own.

mod capacity;
mod failures;
mod life;
mod snapshots;

use std::time::Instant;

use crate::bench::Bench;

/// Runs those whose name contains the text, and says how each ended; how many failed.
pub(crate) async fn run(bench: &mut Bench, only: &str) -> usize {
    let mut failed = 0;
    macro_rules! scenarios {
        ($($module:ident::$name:ident),* $(,)?) => {$(
            let name = concat!(stringify!($module), "-", stringify!($name)).replace('_', "-");
            if name.contains(only) {
                let begun = Instant::now();
                let done = match bench.namespace(&name).await {
                    Ok(()) => $module::$name(bench, &name).await,
                    Err(error) => Err(error),
                };
                let seconds = begun.elapsed().as_secs_f32();
                match done {
                    Ok(()) => println!("ok {name} ({seconds:.1} s)"),
                    Err(error) => {
                        failed += 1;
                        println!("FAILED {name} ({seconds:.1} s): {error:#}");
                    }
                }
            }
        )*};
    }
    scenarios![
        life::provision,
        life::attach,
        life::second_node,
        life::grow,
        capacity::late_binding,
        snapshots::restore,
        failures::leader_killed,
        failures::namespace_deleted,
        // Last, since a node is missing afterwards.
        failures::node_lost,
    ];
    if let Some(log) = bench.cluster.ended() {
        println!("FAILED everything runs to the end: see {log}");
        failed += 1;
    }
    failed
}
