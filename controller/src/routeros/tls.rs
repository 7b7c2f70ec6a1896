//! Whether the server is the appliance. Always checked; there is no way to switch it off.
//!
//! Appliances usually have a self-signed certificate, often a CA of its own and without the
//! address in it, which ordinary verification refuses on both counts. So a certificate that
//! is itself in `ca.crt`, byte for byte, is accepted as what it is: pinned, whatever it says
//! about names and dates (an appliance that boots may not know the date). Any other must
//! chain up to `ca.crt` and carry the host's name. `cert.sha256` must match where it exists.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{self, CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use crate::credentials::{TrustMaterial, fingerprint_of};

#[derive(Debug)]
struct Pinned {
    trust: TrustMaterial,
    chain: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// The TLS side of a connection: TLS 1.2 (all that RouterOS speaks) or 1.3.
pub(super) fn client_config(trust: &TrustMaterial) -> Result<Arc<ClientConfig>, String> {
    let provider: Arc<CryptoProvider> = Arc::new(crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    // One that cannot be a root may still be the pinned certificate itself.
    roots.add_parsable_certificates(trust.certificates.iter().cloned());
    let chain = if roots.is_empty() {
        None
    } else {
        let built =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build();
        Some(built.map_err(|e| e.to_string())?)
    };
    let algorithms = provider.signature_verification_algorithms;
    let verifier = Pinned { trust: trust.clone(), chain, algorithms };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(pin) = &self.trust.fingerprint {
            if &fingerprint_of(end_entity) != pin {
                return Err(CertificateError::ApplicationVerificationFailure.into());
            }
            if self.trust.certificates.is_empty() {
                return Ok(ServerCertVerified::assertion());
            }
        }
        if self.trust.certificates.iter().any(|c| c == end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        match &self.chain {
            Some(chain) => {
                chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    // A pinned certificate proves nothing without the key: these two check that.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether a failed handshake failed for the certificate, and what to say of it.
pub(super) fn certificate_problem(error: &std::io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => {
            Some("its SHA-256 is not the one in cert.sha256".into())
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            Some("it was not issued by a certificate in ca.crt".into())
        }
        Error::InvalidCertificate(cause) => Some(cause.to_string()),
        Error::NoCertificatesPresented => Some("it has none".into()),
        _ => None,
    }
}
