//! Start and end of a simulator.

use std::fs;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::appliance::core::Appliance;
use crate::appliance::exports::Exports;
use crate::appliance::pool::Pools;
use crate::appliance::store::Store;
use crate::config::{Ctl, Serve};
use crate::control::command::ControlCommand;
use crate::control::{perform::perform, server};
use crate::files::write_secret;
use crate::journal::Journal;
use crate::management::{Management, listen};
use crate::rest;
use crate::sim::Sim;
use crate::ssh;
use crate::target::{Target, fake::Fake, network, nvmet::Nvmet};

/// Serves until SIGTERM or SIGINT, then takes down what it made.
pub async fn run(config: Serve) -> anyhow::Result<()> {
    fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("{}", config.state_dir.display()))?;
    let faults = config.fault.iter().map(|f| parse_fault(f)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let rest_listener = bind(config.rest_addr).await?;
    let ssh_listener = bind(config.ssh_addr).await?;
    let host_key = ssh::keys::host_key(&config.state_dir, config.ssh_host_key)?;
    let fingerprint = ssh::keys::fingerprint(&host_key);
    let authorized = ssh::keys::authorized(config.authorized_keys.as_deref())?;
    let control_listener = server::bind(&config.control_path()).context("control socket")?;
    let tls = TlsAcceptor::from(rest::tls::server_config(
        &config.state_dir,
        &config.sans(),
        config.certificate,
    )?);
    if let Some(copy) = &config.tls_cert_out {
        fs::copy(config.state_dir.join("cert.pem"), copy)?;
    }
    let (sim, changes) = assemble(config)?;
    // Rules of a killed run would drop packets for ever. Where there is no nft there are none.
    if let Err(e) = network::heal(sim.config.portal).await {
        tracing::debug!("{e}");
    }
    for fault in faults {
        perform(&sim, fault).await.map_err(|e| anyhow::anyhow!("--fault: {e}"))?;
    }
    tokio::spawn(sim.exports.clone().follow(changes));
    sim.exports.settle_all().await;

    let rest_address = rest_listener.local_addr()?;
    let for_rest = sim.clone();
    tokio::spawn(listen(rest_listener, sim.management.watch(), move |stream, _| {
        rest::server::serve(for_rest.clone(), tls.clone(), stream)
    }));
    let ssh_address = ssh_listener.local_addr()?;
    let ssh_server = Arc::new(ssh::server::Server::new(sim.clone(), host_key, authorized));
    tokio::spawn(listen(ssh_listener, sim.management.watch(), move |stream, _| {
        ssh_server.clone().serve(stream)
    }));
    tokio::spawn(server::serve(sim.clone(), control_listener));
    let endpoints = serde_json::json!({ "rest": rest_address, "ssh": ssh_address, "ssh_fingerprint": fingerprint, "portal": sim.config.portal });
    fs::write(sim.config.state_dir.join("endpoints.json"), endpoints.to_string())?;
    println!("{fingerprint}");
    println!("ready");

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // A copy under way ends, as at a power failure.
    sim.appliance.power_off();
    let _ = network::heal(sim.config.portal).await;
    sim.exports.tear_down().await?;
    let _ = fs::remove_file(sim.config.control_path());
    Ok(())
}

async fn bind(address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))
}

fn assemble(
    config: Serve,
) -> anyhow::Result<(Arc<Sim>, mpsc::UnboundedReceiver<crate::appliance::core::Change>)> {
    let dir = &config.state_dir;
    let pools = Pools::create(dir, &config.pool, config.switches.allocate)?;
    for path in &config.dir {
        let (_, host) = pools.resolve(path).with_context(|| format!("--dir {path}: in no pool"))?;
        fs::create_dir_all(host)?;
    }
    let target: Box<dyn Target> = if config.no_nvmet {
        Box::new(Fake::default())
    } else {
        Box::new(Nvmet::open(config.portal.ip(), config.portal.port(), dir.join("nvmet.json"))?)
    };
    let (sender, changes) = mpsc::unbounded_channel();
    let store = Store::new(dir.join("state.json"));
    let appliance = Appliance::restore(
        config.switches.clone(),
        pools,
        store,
        config.ros_version,
        config.portal.port(),
        sender,
    )
    .context("state.json")?;
    let appliance = Arc::new(appliance);
    let exports = Arc::new(Exports::new(appliance.clone(), target));
    let sim = Sim {
        password: password(&config)?,
        journal: Journal::open(&dir.join("requests.jsonl"))?,
        appliance,
        exports,
        management: Management::default(),
        faults: Default::default(),
        desk: Default::default(),
        rebooting: Default::default(),
        config,
    };
    Ok((Arc::new(sim), changes))
}

fn password(config: &Serve) -> anyhow::Result<String> {
    let path = config.password_file.clone().unwrap_or_else(|| config.state_dir.join("password"));
    if config.password_file.is_none() && !path.exists() {
        write_secret(&path, &hex::encode(rand::random::<[u8; 16]>()))?;
    }
    let text =
        fs::read_to_string(&path).with_context(|| format!("password file {}", path.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// `--fault "delay 100"` is the `ctl` command of that name.
fn parse_fault(text: &str) -> anyhow::Result<ControlCommand> {
    let words = ["rds-sim ctl", "--state-dir", "."].into_iter().chain(text.split_whitespace());
    Ok(Ctl::try_parse_from(words).with_context(|| format!("--fault {text:?}"))?.command)
}
