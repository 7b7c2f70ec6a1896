use std::process::ExitCode;

use rds_sim::config::Invocation;

#[tokio::main]
async fn main() -> ExitCode {
    let invocation = match Invocation::parse_from(std::env::args_os().collect()) {
        Ok(invocation) => invocation,
        Err(e) => e.exit(),
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("RUST_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,russh=warn"));
    // stdout is for `ready` and for the JSON of `ctl`.
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result = match invocation {
        Invocation::Ctl(ctl) => {
            rds_sim::control::client::run(ctl).await.map(|value| println!("{value:#}"))
        }
        Invocation::Serve(serve) => rds_sim::run::run(*serve).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("rds-sim: {e:#}");
            ExitCode::FAILURE
        }
    }
}
