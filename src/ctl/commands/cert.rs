//! `cert`: creates CAs and certificates for webservers and load balancers.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use gravwell_env::{Clock, SystemClock};
use gravwell_model::MemberName;
use gravwell_model::codec::json_lines::timestamp;

use crate::balance::{SHARED_NAME, member_name};
use crate::client::certificate::{Shown, named, show};
use crate::client::output::Output;
use crate::error::{CtlError, CtlResult};

/// Create or show certificates for webservers and load balancers.
#[derive(Debug, clap::Args)]
pub struct Cert {
    /// Command to run on certificates.
    #[command(subcommand)]
    pub action: CertAction,
}

/// Commands of `cert`.
#[derive(Debug, Subcommand)]
pub enum CertAction {
    /// Create a CA for the certificates of your webservers: ca.pem and ca-key.pem.
    Ca {
        /// Directory to write the files to.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Name of the CA.
        #[arg(long, default_value = "Gravwell webservers", value_name = "TEXT")]
        name: String,
        /// Lifetime in days.
        #[arg(long, default_value_t = 3650, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
        /// Replace an existing CA; every certificate that it signed becomes invalid.
        #[arg(long)]
        replace: bool,
    },
    /// Create a certificate for a webserver or load balancer.
    ///
    /// Writes cert.pem, key.pem, and bundle.pem with both for haproxy.
    Server(CertServer),
    /// Show the owner, names and remaining lifetime of certificates.
    Show {
        /// Files in PEM format.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

/// Arguments of `cert server`.
#[derive(Debug, clap::Args)]
pub struct CertServer {
    /// Host name or address that the certificate is valid for; may be repeated.
    #[arg(long = "name", required = true, value_name = "HOST")]
    pub names: Vec<String>,
    /// Member that the certificate is for.
    ///
    /// Adds the name MEMBER.webserver.gravwell.internal, for balancers with --member-names.
    #[arg(long, value_name = "MEMBER")]
    pub member: Option<MemberName>,
    /// Directory to write the files to.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Directory of the CA that signs the certificate.
    ///
    /// [default: the certificate is self-signed, and browsers show a warning]
    #[arg(long, value_name = "DIR")]
    pub ca: Option<PathBuf>,
    /// Lifetime in days.
    #[arg(long, default_value_t = 397, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
    /// Replace existing files.
    #[arg(long)]
    pub replace: bool,
    /// Replace the certificate only if necessary; for use in a timer.
    ///
    /// Replaces it if less than a third of --days remains, if it was signed by a different CA, or if it is for
    /// different names.
    #[arg(long, conflicts_with = "replace")]
    pub renew: bool,
}

/// Tolerance for peers with slow clocks.
const CLOCK_SLACK: Duration = Duration::hours(1);
const MS_PER_DAY: u64 = 24 * 3600 * 1000;
const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca-key.pem";

fn failed(error: rcgen::Error) -> CtlError {
    CtlError::new(format!("cannot create the certificate: {error}"))
}

/// Runs a `cert` command.
pub(super) fn run(json: bool, args: Cert) -> CtlResult {
    let made = match args.action {
        CertAction::Ca { out, name, days, replace } => vec![authority(&out, &name, days, replace)?],
        CertAction::Server(server) => vec![server_certificate(&server)?],
        CertAction::Show { files } => files.iter().map(|file| show(file)).collect::<Result<Vec<_>, _>>()?,
    };
    Output::new().list(json, &made, &["FILE", "SUBJECT", "ISSUER", "EXPIRES", "NAMES"], |shown| {
        let file = shown.file.display().to_string();
        vec![file, shown.subject.clone(), shown.issuer.clone(), timestamp(shown.expires_ms), shown.names.join(" ")]
    })
}

fn authority(out: &Path, name: &str, days: u32, replace: bool) -> Result<Shown, CtlError> {
    let (certificate_file, key_file) = (out.join(CA_CERTIFICATE), out.join(CA_KEY));
    refuse_existing(&[&certificate_file, &key_file], replace)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    live(&mut params, days);
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    fs::create_dir_all(out).map_err(named(out))?;
    write(&key_file, &key.serialize_pem(), 0o600)?;
    write(&certificate_file, &certificate.pem(), 0o644)?;
    show(&certificate_file)
}

fn server_certificate(server: &CertServer) -> Result<Shown, CtlError> {
    let file = |name: &str| server.out.join(name);
    let (certificate_file, key_file, bundle_file) = (file("cert.pem"), file("key.pem"), file("bundle.pem"));
    let mut names = server.names.clone();
    names.extend(server.member.iter().map(|member| member_name(member.as_str())));
    if server.ca.is_some() && !names.iter().any(|name| name == SHARED_NAME) {
        names.push(SHARED_NAME.to_owned());
    }
    if let Some(name) = names.iter().find(|name| !is_name(name)) {
        let message = format!("`{name}` is neither a host name nor an address; omit scheme and port");
        return Err(CtlError { message, exit: 2 });
    }
    if server.renew && certificate_file.exists() {
        let shown = show(&certificate_file)?;
        if key_file.exists() && bundle_file.exists() && is_fresh(server, &shown, &names)? {
            return Ok(shown);
        }
    } else {
        refuse_existing(&[&certificate_file, &key_file, &bundle_file], server.replace)?;
    }
    let mut params = CertificateParams::new(names.clone()).map_err(failed)?;
    let first = names.first().cloned().unwrap_or_default();
    params.distinguished_name.push(DnType::CommonName, first);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = server.ca.is_some();
    live(&mut params, server.days);
    let key = KeyPair::generate().map_err(failed)?;
    let chain = match &server.ca {
        None => params.self_signed(&key).map_err(failed)?.pem(),
        Some(ca) => {
            let ca_certificate =
                fs::read_to_string(ca.join(CA_CERTIFICATE)).map_err(named(&ca.join(CA_CERTIFICATE)))?;
            let ca_key = fs::read_to_string(ca.join(CA_KEY)).map_err(named(&ca.join(CA_KEY)))?;
            let wrong = |error: rcgen::Error| CtlError::new(format!("CA in {}: {error}", ca.display()));
            let ca_key = KeyPair::from_pem(&ca_key).map_err(wrong)?;
            let issuer = Issuer::from_ca_cert_pem(&ca_certificate, ca_key).map_err(wrong)?;
            params.signed_by(&key, &issuer).map_err(failed)?.pem() + &ca_certificate
        }
    };
    fs::create_dir_all(&server.out).map_err(named(&server.out))?;
    write(&key_file, &key.serialize_pem(), 0o600)?;
    write(&bundle_file, &(chain.clone() + &key.serialize_pem()), 0o600)?;
    write(&certificate_file, &chain, 0o644)?;
    show(&certificate_file)
}

/// Returns whether an existing certificate equals the requested one and has enough lifetime left.
fn is_fresh(server: &CertServer, shown: &Shown, names: &[String]) -> Result<bool, CtlError> {
    let left_ms = shown.expires_ms.saturating_sub(SystemClock.now_ms());
    let is_for = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase()).collect::<BTreeSet<_>>();
    if left_ms < u64::from(server.days) * MS_PER_DAY / 3 || is_for(names) != is_for(&shown.names) {
        return Ok(false);
    }
    let Some(ca) = &server.ca else { return Ok(shown.subject == shown.issuer) };
    let read = |file: &Path| {
        let wrong = |error| CtlError::new(format!("{}: {error}", file.display()));
        CertificateDer::from_pem_slice(&fs::read(file).map_err(named(file))?).map_err(wrong)
    };
    let (leaf, root) = (read(&shown.file)?, read(&ca.join(CA_CERTIFICATE))?);
    let parsed = X509Certificate::from_der(&leaf).and_then(|(_, leaf)| Ok((leaf, X509Certificate::from_der(&root)?.1)));
    Ok(parsed.is_ok_and(|(leaf, root)| leaf.verify_signature(Some(root.public_key())).is_ok()))
}

fn is_name(name: &str) -> bool {
    let is_label =
        |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    let host = name.strip_prefix("*.").unwrap_or(name);
    name.parse::<std::net::IpAddr>().is_ok() || (host.len() <= 253 && host.split('.').all(is_label))
}

fn live(params: &mut CertificateParams, days: u32) {
    params.not_before = OffsetDateTime::now_utc() - CLOCK_SLACK;
    params.not_after = OffsetDateTime::now_utc() + Duration::days(i64::from(days));
}

/// Refuses to replace existing files unless requested: replacing a CA invalidates every certificate that it signed.
fn refuse_existing(files: &[&Path], replace: bool) -> CtlResult {
    match files.iter().find(|file| file.exists()) {
        Some(file) if !replace => Err(CtlError::new(format!(
            "{} already exists; use --replace, or write to another directory with --out",
            file.display()
        ))),
        _ => Ok(()),
    }
}

/// Writes a file atomically; its mode is set before its contents are written.
fn write(path: &Path, contents: &str, mode: u32) -> CtlResult {
    let beside = path.with_extension("pem.tmp");
    let _ = fs::remove_file(&beside);
    let written = fs::OpenOptions::new().create_new(true).write(true).mode(mode).open(&beside).and_then(|mut file| {
        // The umask restricts the mode of a new file, so set it explicitly.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(contents.as_bytes())?;
        file.sync_all()
    });
    written.map_err(named(&beside))?;
    fs::rename(&beside, path).map_err(named(path))
}

#[cfg(test)]
mod tests {

    use super::*;

    fn server(dir: &Path, ca: Option<PathBuf>, names: &[&str]) -> CertServer {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        CertServer { names, member: None, out: dir.to_owned(), ca, days: 30, replace: false, renew: false }
    }

    #[test]
    fn a_ca_signs_certificates() {
        let temp = tempfile::tempdir().expect("temp dir");
        let ca = temp.path().join("ca");
        let made = authority(&ca, "our authority", 3650, false).expect("makes");
        assert_eq!(made.subject, "CN=our authority");
        assert!(authority(&ca, "again", 1, false).is_err(), "not replaced without --replace");
        let out = temp.path().join("web1");
        let shown =
            server_certificate(&server(&out, Some(ca.clone()), &["web1.example.net", "10.0.0.5"])).expect("signs");
        assert_eq!(shown.issuer, "CN=our authority");
        assert_eq!(shown.names, ["web1.example.net", "10.0.0.5", SHARED_NAME]);
        for (file, mode) in [("key.pem", 0o600), ("bundle.pem", 0o600), ("cert.pem", 0o644)] {
            let found = fs::metadata(out.join(file)).expect("exists").permissions().mode();
            assert_eq!(found & 0o777, mode, "{file}");
        }
        // Verify the certificate with the key of its issuer, as a balancer does.
        let root = CertificateDer::from_pem_file(ca.join(CA_CERTIFICATE)).expect("reads");
        let chain: Vec<_> = CertificateDer::pem_file_iter(out.join("cert.pem")).expect("reads").flatten().collect();
        let (_, leaf) = X509Certificate::from_der(&chain[0]).expect("parses");
        let (_, root) = X509Certificate::from_der(&root).expect("parses");
        leaf.verify_signature(Some(root.public_key())).expect("fits");
        assert_eq!(chain.len(), 2);
    }

    #[test]
    fn p11_a_certificate_is_renewed_when_it_has_to_be_and_left_alone_otherwise() {
        let temp = tempfile::tempdir().expect("temp dir");
        let [ca, other] = ["ca", "other"].map(|name| temp.path().join(name));
        for ca in [&ca, &other] {
            authority(ca, "our authority", 3650, false).expect("makes");
        }
        let out = temp.path().join("web1");
        let asked = |ca: &Path, names: &[&str]| CertServer { renew: true, ..server(&out, Some(ca.to_owned()), names) };
        let file = || fs::read(out.join("cert.pem")).expect("reads");
        let renews = |wanted: &CertServer| {
            let before = out.join("cert.pem").exists().then(file);
            server_certificate(wanted).expect("creates or keeps");
            before != Some(file())
        };
        let one = asked(&ca, &["web1.example.net"]);
        assert!(renews(&one), "no certificate exists");
        assert!(!renews(&one), "it is fresh");
        assert!(
            !renews(&CertServer { days: 89, ..asked(&ca, &["WEB1.example.net"]) }),
            "a third of its lifetime is left"
        );
        assert!(renews(&CertServer { days: 91, ..asked(&ca, &["web1.example.net"]) }), "less than a third is left");
        assert!(renews(&asked(&ca, &["web1.example.net", "10.0.0.5"])), "it is for other names");
        let of_member = CertServer { member: Some("web1".parse().expect("a name")), ..asked(&ca, &["10.0.0.5"]) };
        assert!(renews(&of_member) && !renews(&of_member));
        assert_eq!(
            show(&out.join("cert.pem")).expect("shows").names,
            ["10.0.0.5", "web1.webserver.gravwell.internal", SHARED_NAME]
        );
        assert!(
            renews(&CertServer { member: of_member.member.clone(), ..asked(&other, &["10.0.0.5"]) }),
            "another authority"
        );
        fs::remove_file(out.join("key.pem")).expect("removes");
        assert!(renews(&CertServer { member: of_member.member, ..asked(&other, &["10.0.0.5"]) }), "its key is missing");
        fs::remove_file(out.join("cert.pem")).expect("removes");
        assert!(
            server_certificate(&asked(&other, &["10.0.0.5"])).is_err(),
            "a key without its certificate is not replaced without --replace"
        );
    }

    #[test]
    fn names_are_names() {
        let temp = tempfile::tempdir().expect("temp dir");
        for name in ["https://a", "a:443", "a b", ""] {
            assert!(server_certificate(&server(temp.path(), None, &[name])).is_err(), "{name}");
        }
        let shown = server_certificate(&server(temp.path(), None, &["*.example.net", "::1"])).expect("makes");
        assert_eq!(shown.names, ["*.example.net", "::1"]);
        assert!(server_certificate(&server(temp.path(), None, &["a"])).is_err(), "not replaced without --replace");
    }
}
