//! A certificate authority of its own for each server, and a client that trusts it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Files in PEM: the authority's certificate, and a server's certificate and key.
///
/// The server is named `localhost` and nothing else, so that `127.0.0.1` reaches it under a name that does not verify.
#[derive(Clone)]
pub(crate) struct Certificates {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificates {
    /// Makes a new authority and a server certificate, as `ca.crt`, `server.crt` and `server.key` in `dir`.
    pub(crate) fn write(dir: &Path) -> Certificates {
        let ca_key = KeyPair::generate().expect("a key pair");
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        ca.distinguished_name.push(DnType::CommonName, "integration test authority");
        let ca_cert = ca.self_signed(&ca_key).expect("a self-signed certificate");
        let issuer = Issuer::new(ca, ca_key);

        let key = KeyPair::generate().expect("a key pair");
        let mut server = CertificateParams::new(["localhost".to_owned()]).expect("a valid name");
        server.distinguished_name.push(DnType::CommonName, "localhost");
        let cert = server.signed_by(&key, &issuer).expect("a signed certificate");

        let files = Certificates { ca: dir.join("ca.crt"), cert: dir.join("server.crt"), key: dir.join("server.key") };
        for (path, pem) in [(&files.ca, ca_cert.pem()), (&files.cert, cert.pem()), (&files.key, key.serialize_pem())] {
            std::fs::write(path, pem).expect("the server's directory is writable");
        }
        files
    }
}

/// A TLS client configuration that trusts the authority in `ca` and nobody else.
pub(crate) fn client_trusting(ca: &Path) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).expect("a PEM certificate")).expect("a certificate authority");
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring supports the default TLS versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}
