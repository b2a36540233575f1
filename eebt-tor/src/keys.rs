//! A folder of lasting keys, kept by Arti's own key store (OpenSSH format, permissions checked).

use std::path::{Path, PathBuf};

use derive_deftly::Deftly;
use fs_mistrust::Mistrust;
use tor_hscrypto::pk::HsIdKeypair;
use tor_key_forge::{Keygen, ToEncodableKey};
use tor_keymgr::{
    ArtiNativeKeystore, KeyMgr, KeyMgrBuilder, KeySpecifier, KeystoreSelector,
    derive_deftly_template_KeySpecifier,
};
use tor_llcrypto::pk::ed25519::ExpandedKeypair;
use tor_llcrypto::rng::CautiousRng;

/// Where the identity of an onion service is kept.
#[derive(Deftly, PartialEq, Debug)]
#[derive_deftly(KeySpecifier)]
#[deftly(prefix = "exit_bridge")]
#[deftly(role = "KS_hs_id")]
#[deftly(summary = "Identity of an onion exit bridge or an exit-bridge directory")]
struct ServiceSpecifier;

/// A folder with keys, for its owner only.
pub struct KeyFolder {
    store: KeyMgr,
    path: PathBuf,
}

/// The key store refuses, because of permissions or a damaged file; the source says which.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the keys in {path}")]
pub struct KeyFolderError {
    /// The folder.
    pub path: PathBuf,
    /// What the key store said.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl KeyFolder {
    /// Opens a folder, which is made with mode 0700.
    ///
    /// # Errors
    /// See [`KeyFolderError`].
    pub fn open(path: &Path) -> Result<Self, KeyFolderError> {
        let mistrust =
            Mistrust::builder().controlled_by_env_var("FS_MISTRUST_DISABLE_PERMISSIONS_CHECKS").build();
        let mistrust = mistrust.map_err(|e| error(path, e))?;
        let store =
            ArtiNativeKeystore::from_path_and_mistrust(path, &mistrust).map_err(|e| error(path, e))?;
        let store = KeyMgrBuilder::default().primary_store(Box::new(store)).build();
        Ok(Self { store: store.map_err(|e| error(path, e))?, path: path.to_owned() })
    }

    /// The key of this name, if it is there.
    ///
    /// # Errors
    /// See [`KeyFolderError`].
    pub fn get<K: ToEncodableKey>(&self, name: &dyn KeySpecifier) -> Result<Option<K>, KeyFolderError> {
        self.store.get(name).map_err(|e| error(&self.path, e))
    }

    /// The key of this name, made first where there is none.
    ///
    /// # Errors
    /// See [`KeyFolderError`].
    pub fn get_or_generate<K>(&self, name: &dyn KeySpecifier) -> Result<K, KeyFolderError>
    where
        K: ToEncodableKey,
        K::Key: Keygen,
    {
        let selector = KeystoreSelector::default();
        self.store.get_or_generate(name, selector, &mut CautiousRng).map_err(|e| error(&self.path, e))
    }
}

/// The identity of the onion service whose keys are in `folder`, made first where there is none.
///
/// # Errors
/// See [`KeyFolderError`].
pub fn service_key(folder: &KeyFolder) -> Result<HsIdKeypair, KeyFolderError> {
    folder.get_or_generate(&ServiceSpecifier)
}

/// Ed25519 over `message` with the identity of an onion service: who knows its address can check it.
pub fn sign_as_service(key: &HsIdKeypair, message: &[u8]) -> [u8; 64] {
    AsRef::<ExpandedKeypair>::as_ref(key).sign(message).to_bytes()
}

fn error(path: &Path, source: impl std::error::Error + Send + Sync + 'static) -> KeyFolderError {
    KeyFolderError { path: path.into(), source: Box::new(source) }
}
