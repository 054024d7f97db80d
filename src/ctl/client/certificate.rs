//! Details of certificates in files.

use std::fs;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::error::CtlError;

/// Details of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Shown {
    /// File that contains the certificate.
    pub file: PathBuf,
    /// Distinguished name of the subject.
    pub subject: String,
    /// Distinguished name of the issuer.
    pub issuer: String,
    /// Host names and addresses that the certificate is valid for.
    pub names: Vec<String>,
    /// Expiry in milliseconds since 1970-01-01 UTC.
    pub expires_ms: u64,
}

/// Returns a mapping that adds a path to an error.
pub(crate) fn named(path: &Path) -> impl Fn(std::io::Error) -> CtlError {
    let path = path.to_owned();
    move |error| CtlError::new(format!("{}: {error}", path.display()))
}

/// Returns the details of the first certificate in a file.
pub(crate) fn show(file: &Path) -> Result<Shown, CtlError> {
    let pem = fs::read(file).map_err(named(file))?;
    let wrong = |what: String| CtlError::new(format!("{}: {what}", file.display()));
    let der = CertificateDer::from_pem_slice(&pem).map_err(|error| wrong(format!("invalid certificate: {error}")))?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| wrong(error.to_string()))?;
    let names = parsed.subject_alternative_name().ok().flatten().map(|found| &found.value.general_names);
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes),
        _ => None,
    };
    Ok(Shown {
        file: file.to_owned(),
        subject: parsed.subject().to_string(),
        issuer: parsed.issuer().to_string(),
        names: names.into_iter().flatten().filter_map(text).collect(),
        expires_ms: u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0).saturating_mul(1000),
    })
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(four).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string())
}
