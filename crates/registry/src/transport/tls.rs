//! TLS: whom we trust, who we are, and what went wrong in the words that clients know.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::{Transport, TransportKind};
use crate::hosts::Tls;

/// The configuration for a host. Reads files: the system's trust anchors only when they are needed.
pub(super) fn configure(tls: &Tls) -> Result<ClientConfig, Transport> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| failure(&error.to_string()))?;
    let builder = if tls.skip_verify == Some(true) {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAny(Arc::clone(&provider))))
    } else {
        builder.with_root_certificates(roots(&tls.ca)?)
    };
    let mut config = if tls.client.is_empty() {
        builder.with_no_client_auth()
    } else {
        let keys =
            tls.client.iter().map(|(certificate, key)| identity(certificate, key.as_deref(), &provider));
        builder.with_client_cert_resolver(Arc::new(Identities(keys.collect::<Result<_, _>>()?)))
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn roots(files: &[PathBuf]) -> Result<RootCertStore, Transport> {
    let mut store = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "a trust anchor of the system was left out");
    }
    store.add_parsable_certificates(native.certs);
    for file in files {
        for certificate in read_certificates(file)? {
            store.add(certificate).map_err(|error| unreadable(file, &error))?;
        }
    }
    Ok(store)
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Transport> {
    CertificateDer::pem_file_iter(file).and_then(Iterator::collect).map_err(|error| unreadable(file, &error))
}

fn identity(
    certificate: &Path,
    key: Option<&Path>,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, Transport> {
    let chain = read_certificates(certificate)?;
    let key_file = key.unwrap_or(certificate);
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| unreadable(key_file, &error))?;
    let key =
        CertifiedKey::from_der(chain, key, provider).map_err(|error| unreadable(certificate, &error))?;
    Ok(Arc::new(key))
}

fn failure(text: &str) -> Transport {
    Transport::new(TransportKind::Other, format!("tls: {text}"))
}

fn unreadable(file: &Path, error: &dyn std::fmt::Display) -> Transport {
    failure(&format!("failed to load {}: {error}", file.display()))
}

/// Whether a handshake failed for want of a protocol that both know.
pub(super) fn refuses_protocol(error: &std::io::Error) -> bool {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(cause, Some(rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)))
}

/// What a failed handshake says.
pub(super) fn handshake_error(error: &std::io::Error, host: &str) -> Transport {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let text = match cause {
        None => return Transport::io(error),
        Some(rustls::Error::InvalidCertificate(reason)) => {
            format!("failed to verify certificate: x509: {}", certificate_text(reason, host))
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            "first record does not look like a TLS handshake".to_owned()
        }
        Some(rustls::Error::AlertReceived(alert)) => {
            return Transport::new(TransportKind::Other, format!("remote error: tls: {alert:?}"));
        }
        Some(other) => other.to_string(),
    };
    failure(&text)
}

fn certificate_text(reason: &CertificateError, host: &str) -> String {
    match reason {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "certificate signed by unknown authority".to_owned()
        }
        CertificateError::Expired
        | CertificateError::NotValidYet
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYetContext { .. } => {
            "certificate has expired or is not yet valid".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("certificate is not valid for {host}")
        }
        other => format!("{other:?}"),
    }
}

/// Accepts every certificate: `skip_verify`.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Our certificates: the first whose key the peer can check.
#[derive(Debug)]
struct Identities(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Identities {
    fn resolve(&self, _issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|key| key.key.choose_scheme(schemes).is_some()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}
