//! What only REST has: TLS.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use lab::*;
use tonic::Code;

const ID: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";

#[tokio::test]
async fn only_the_right_certificate_is_trusted() {
    let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let pem = other.cert.pem();
    let lab = Lab::start_with(&[], |dir| std::fs::write(dir.join("ca.crt"), &pem).unwrap()).await;
    refused(lab.create(ID).await, Code::FailedPrecondition, "ca.crt");
    let before = lab.requests();
    refused(lab.delete(ID).await, Code::FailedPrecondition, "certificate");
    assert_eq!(lab.requests(), before, "the password went to a stranger");
    // A fingerprint that does not match, beside the right certificate.
    std::fs::copy(lab.path("rds/cert.pem"), lab.path("secrets/ca.crt")).unwrap();
    std::fs::write(lab.path("secrets/cert.sha256"), "00".repeat(32)).unwrap();
    refused(lab.create(ID).await, Code::FailedPrecondition, "cert.sha256");
    std::fs::remove_file(lab.path("secrets/cert.sha256")).unwrap();
    lab.create(ID).await.unwrap();
    // Rotated while a connection is open.
    std::fs::write(lab.path("secrets/ca.crt"), &pem).unwrap();
    refused(lab.create(ID).await, Code::FailedPrecondition, "certificate");
    std::fs::remove_file(lab.path("secrets/ca.crt")).unwrap();
    refused(lab.create(ID).await, Code::FailedPrecondition, "ca.crt");
}
