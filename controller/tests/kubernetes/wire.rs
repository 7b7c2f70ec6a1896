//! A way to the API server that can be slow, or cut, while the server goes on.

use std::path::PathBuf;

use rds_kube::Cluster;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::lab::Lab;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Open,
    /// Connections are made, and nothing comes through.
    Silent,
    /// Connections end, and new ones do at once.
    Cut,
}

/// It ends with the test.
pub struct Wire {
    state: watch::Sender<State>,
    port: u16,
}

impl Wire {
    pub async fn to(cluster: &Cluster) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, server) = (listener.local_addr().unwrap().port(), cluster.address());
        let (sender, state) = watch::channel(State::Open);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, server.clone(), state.clone()));
            }
        });
        Self { state: sender, port }
    }

    pub fn is(&self, state: State) {
        self.state.send_replace(state);
    }

    /// As the controller's user, this way.
    pub fn kubeconfig(&self, lab: &Lab, cluster: &Cluster) -> PathBuf {
        let text = std::fs::read_to_string(cluster.kubeconfig_of("controller")).unwrap();
        let path = lab.path("kubeconfig");
        let here = format!("127.0.0.1:{}", self.port);
        std::fs::write(&path, text.replace(&cluster.address(), &here)).unwrap();
        path
    }
}

async fn carry(near: TcpStream, server: String, mut state: watch::Receiver<State>) {
    let gate = state.clone();
    let both = async {
        let far = TcpStream::connect(server).await.unwrap();
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        tokio::join!(pump(near_in, far_out, gate.clone()), pump(far_in, near_out, gate));
    };
    tokio::select! {
        () = both => {}
        _ = state.wait_for(|s| *s == State::Cut) => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if state.wait_for(|s| *s == State::Open).await.is_err()
            || to.write_all(&buffer[..n]).await.is_err()
        {
            return;
        }
    }
    to.shutdown().await.ok();
}
