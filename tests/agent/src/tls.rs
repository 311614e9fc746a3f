//! The server's certificate, and the connections that it takes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::server::TlsStream;

use super::shared::Shared;

/// A certificate for localhost and its key.
#[derive(Debug)]
pub(crate) struct Identity {
    /// In PEM.
    pub(crate) certificate: String,
    der: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    pub(crate) fn generate() -> Identity {
        // The last is the node's address in tests where the agent runs in a pod.
        let names = ["localhost", "127.0.0.1", "10.88.0.1"].map(str::to_owned).to_vec();
        let made = rcgen::generate_simple_self_signed(names).expect("make a certificate");
        Identity {
            certificate: made.cert.pem(),
            der: made.cert.der().clone(),
            key: made.signing_key.serialize_der(),
        }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.clone()));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider speaks TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![self.der.clone()], key)
            .expect("certificate and key belong together");
        TlsAcceptor::from(Arc::new(config))
    }
}

/// What axum accepts from.
pub(crate) struct Listener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
}

impl Listener {
    pub(crate) fn new(tcp: std::net::TcpListener, identity: &Identity, shared: Arc<Shared>) -> Listener {
        tcp.set_nonblocking(true).expect("a socket can be non-blocking");
        let tcp = TcpListener::from_std(tcp).expect("inside tokio");
        Listener { tcp, acceptor: identity.acceptor(), shared }
    }
}

impl axum::serve::Listener for Listener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, address)) = self.tcp.accept().await else { continue };
            let Some(stream) = self.shared.doors.enter(stream) else { continue };
            let handshake = self.acceptor.accept(stream);
            if let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_secs(2), handshake).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}
