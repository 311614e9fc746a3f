//! Certificates made on the spot: one authority per run, one certificate per identity, keys that no file
//! keeps.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use anyhow::{Context as _, Result};
use harness::User;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

/// The file names below a proxy's directory.
pub(crate) const AUTHORITY_FILE: &str = "ca.pem";
/// See [`AUTHORITY_FILE`].
pub(crate) const CERTIFICATE_FILE: &str = "cert.pem";
/// See [`AUTHORITY_FILE`].
pub(crate) const KEY_FILE: &str = "key.pem";

/// The authority that the mesh trusts.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
#[derive(Debug)]
pub(crate) struct Credentials {
    certificate: String,
    key: String,
}

impl Authority {
    /// Makes an authority with a new key.
    pub(crate) fn new() -> Result<Authority> {
        let mut params = params("cluster.local")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("generating the authority's key")?;
        let issuer =
            CertifiedIssuer::self_signed(params, key).context("signing the authority's certificate")?;
        Ok(Authority { issuer })
    }

    /// A certificate for `identity`, for both ends of a connection, with a new key.
    pub(crate) fn issue(&self, identity: &str) -> Result<Credentials> {
        let mut params = params("")?;
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().with_context(|| format!("generating the key of {identity}"))?;
        let certificate = params.signed_by(&key, &self.issuer);
        let certificate = certificate.with_context(|| format!("signing the certificate of {identity}"))?;
        Ok(Credentials { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Writes what a proxy needs into its directory; the key is readable for the proxy only.
    pub(crate) fn equip(&self, identity: &str, dir: &Path) -> Result<()> {
        let credentials = self.issue(identity)?;
        write(dir, AUTHORITY_FILE, &self.issuer.pem(), 0o644)?;
        write(dir, CERTIFICATE_FILE, &credentials.certificate, 0o644)?;
        write(dir, KEY_FILE, &credentials.key, 0o400)?;
        let key = dir.join(KEY_FILE);
        chown(&key, Some(User::PROXY.uid), Some(User::PROXY.gid))
            .with_context(|| format!("giving {} away", key.display()))
    }
}

/// Valid around the day of the run, also with a wrong clock: who trusts the authority is gone with it.
fn params(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new()).context("a certificate's parameters")?;
    params.distinguished_name.push(DnType::OrganizationName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2049, 12, 31);
    Ok(params)
}

fn write(dir: &Path, name: &str, text: &str, mode: u32) -> Result<()> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("setting the mode of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_identities_get_different_keys_from_one_authority() {
        let authority = Authority::new().unwrap();
        let one = authority.issue("spiffe://cluster.local/ns/default/sa/one").unwrap();
        let two = authority.issue("spiffe://cluster.local/ns/default/sa/two").unwrap();
        assert!(one.certificate.starts_with("-----BEGIN CERTIFICATE-----"), "{}", one.certificate);
        assert!(one.key != two.key && one.certificate != two.certificate);
    }

    #[test]
    fn an_identity_that_is_no_uri_is_refused() {
        assert!(Authority::new().unwrap().issue("spiffe://ü").is_err());
    }
}
