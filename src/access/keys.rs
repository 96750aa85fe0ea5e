//! API keys: 256 random bits, shown once, stored only as HMAC-SHA256 under a pepper that lies beside the database. A copy of the
//! database alone therefore opens nothing.

use super::{AccessError, Caller, Role, audit};
use crate::store::keys::{self as rows, KeyRow};
use crate::store::{Fresh, Store, StoreError};
use crate::types::ids::{is_slug, new_id, push_hex};
use crate::types::time::now_ms;
use hmac::{Hmac, KeyInit, Mac};
use rand::Rng;
use serde_json::json;
use sha2::Sha256;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const PREFIX: &str = "rk_";
/// Characters after the prefix: 43 of a 64-letter alphabet are 258 bits.
const LENGTH: usize = 43;

/// The keys of a data directory.
#[derive(Clone)]
pub struct Keys {
    store: Store,
    /// HMAC under the pepper, of nothing yet.
    keyed: Hmac<Sha256>,
    /// Whom a key's hash stands for, as of the newest commit.
    known: Arc<Fresh<String, Caller>>,
}

/// A key just made; `key` is not kept anywhere and cannot be shown again.
#[derive(Debug, Clone, serde::Serialize)]
pub struct NewKey {
    /// `key_…`.
    pub id: String,
    /// Name.
    pub name: String,
    /// Project.
    pub project: String,
    /// Role.
    pub role: Role,
    /// `rk_` and 43 characters.
    pub key: String,
}

impl Keys {
    /// Opens the keys of a store; makes the pepper on first use.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the pepper cannot be read or written, [`StoreError::Corrupt`] when it is cut short.
    pub fn open(store: &Store) -> Result<Self, AccessError> {
        let known = Arc::new(Fresh::new(store.db.clone()));
        Ok(Keys { store: store.clone(), keyed: keyed(&pepper(store.directory())?), known })
    }

    /// Makes a key for `project` and writes an audit row.
    ///
    /// # Errors
    /// [`AccessError::Name`] for an impossible name or project; [`AccessError::Store`].
    pub fn create(&self, name: &str, project: &str, role: Role, actor: &str) -> Result<NewKey, AccessError> {
        check_names(name, project)?;
        let key = random_key();
        let hint = format!("{}…{}", &key[..7], &key[key.len() - 4..]);
        let row = KeyRow {
            id: new_id("key"),
            name: name.to_string(),
            project: project.to_string(),
            role: role.word().to_string(),
            hint,
            hash: self.hash(&key),
            created_at: now_ms(),
            revoked_at: None,
        };
        rows::insert(self.store.db.as_ref(), &row)?;
        audit::append(&self.store, actor, "key.create", &row.id, &json!({"name": name, "project": project, "role": role}))?;
        Ok(NewKey { id: row.id, name: row.name, project: row.project, role, key })
    }

    /// All keys, revoked ones too, oldest first.
    ///
    /// # Errors
    /// [`AccessError::Store`].
    pub fn list(&self) -> Result<Vec<KeyRow>, AccessError> {
        Ok(rows::list(self.store.db.as_ref())?)
    }

    /// Revokes an active key, given by id or by name; takes effect with the next request. Returns its row.
    ///
    /// # Errors
    /// [`AccessError::UnknownKey`], [`AccessError::AmbiguousName`], [`AccessError::Store`].
    pub fn revoke(&self, id_or_name: &str, actor: &str) -> Result<KeyRow, AccessError> {
        let matches = |key: &KeyRow| key.revoked_at.is_none() && (key.id == id_or_name || key.name == id_or_name);
        let mut found: Vec<_> = self.list()?.into_iter().filter(matches).collect();
        if found.len() > 1 {
            return Err(AccessError::AmbiguousName(found.len(), id_or_name.to_string()));
        }
        let Some(mut key) = found.pop() else { return Err(AccessError::UnknownKey(id_or_name.to_string())) };
        let at = now_ms();
        if !rows::revoke(self.store.db.as_ref(), &key.id, at)? {
            return Err(AccessError::UnknownKey(id_or_name.to_string()));
        }
        audit::append(&self.store, actor, "key.revoke", &key.id, &json!({"name": key.name, "project": key.project}))?;
        key.revoked_at = Some(at);
        Ok(key)
    }

    /// Who a presented key stands for, where that was looked up since the newest commit. Takes microseconds.
    ///
    /// # Errors
    /// [`AccessError::Store`].
    pub fn recall(&self, presented: &str) -> Result<Option<Caller>, AccessError> {
        if !is_well_formed(presented) {
            return Ok(None);
        }
        Ok(self.known.get(self.known.generation()?, &self.hash(presented)))
    }

    /// Who a presented key stands for. Blocking; the comparison takes the same time for every key.
    ///
    /// # Errors
    /// [`AccessError::InvalidKey`] for an unknown, malformed or revoked key.
    pub fn authenticate(&self, presented: &str) -> Result<Caller, AccessError> {
        if !is_well_formed(presented) {
            return Err(AccessError::InvalidKey);
        }
        let (generation, hash) = (self.known.generation()?, self.hash(presented));
        let row = rows::by_hash(self.store.db.as_ref(), &hash)?.ok_or(AccessError::InvalidKey)?;
        let stored = decode_hex(&row.hash).ok_or_else(|| StoreError::Corrupt(format!("hash of key {}", row.id)))?;
        let same = self.mac(presented).verify_slice(&stored).is_ok();
        if !same || row.revoked_at.is_some() {
            return Err(AccessError::InvalidKey);
        }
        let caller = Caller { key_id: row.id, project: row.project, role: row.role.parse()? };
        self.known.keep(generation, hash, caller.clone());
        Ok(caller)
    }

    fn mac(&self, key: &str) -> Hmac<Sha256> {
        let mut mac = self.keyed.clone();
        mac.update(key.as_bytes());
        mac
    }

    fn hash(&self, key: &str) -> String {
        hex(&self.mac(key).finalize().into_bytes())
    }
}

fn is_well_formed(presented: &str) -> bool {
    presented.len() == PREFIX.len() + LENGTH && presented.starts_with(PREFIX)
}

fn check_names(name: &str, project: &str) -> Result<(), AccessError> {
    if name.is_empty() || name.chars().count() > 64 || name.chars().any(char::is_control) {
        return Err(AccessError::Name { what: "key name", given: name.to_string(), expected: "1 to 64 printable characters" });
    }
    if !is_slug(project) {
        let expected = "1 to 64 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit";
        return Err(AccessError::Name { what: "project", given: project.to_string(), expected });
    }
    Ok(())
}

fn random_key() -> String {
    let mut bytes = [0u8; LENGTH];
    rand::rng().fill_bytes(&mut bytes);
    let letters = bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 63)]));
    PREFIX.chars().chain(letters).collect()
}

/// Reads the pepper, or makes it: written beside its place and hard-linked there, so that of two processes one wins and neither
/// ever reads half of it.
fn pepper(directory: &Path) -> Result<Vec<u8>, StoreError> {
    let path = directory.join("pepper");
    if !path.exists() {
        let temporary = directory.join(new_id("pepper"));
        let written = write_private(&temporary, hex(&rand::random::<[u8; 32]>()).as_bytes());
        let linked = written.and_then(|()| fs::hard_link(&temporary, &path));
        let _ = fs::remove_file(&temporary);
        if let Err(source) = linked
            && source.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(StoreError::Io { path, source });
        }
    }
    let text = fs::read_to_string(&path).map_err(|source| StoreError::Io { path: path.clone(), source })?;
    let bytes = decode_hex(text.trim()).filter(|bytes| bytes.len() == 32);
    bytes.ok_or_else(|| StoreError::Corrupt(format!("{} is not 64 hex digits", path.display())))
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn keyed(pepper: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(pepper).expect("HMAC takes a key of any length (RFC 2104)")
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    push_hex(&mut text, bytes);
    text
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2).and_then(|p| u8::from_str_radix(p, 16).ok())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_until_it_is_revoked_and_only_under_its_pepper() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(directory.path()).expect("store");
        let keys = Keys::open(&store).expect("keys");
        let made = keys.create("ci", "default", Role::App, "test").expect("create");
        assert_eq!((made.key.len(), &made.key[..3]), (46, "rk_"));
        assert_eq!(keys.authenticate(&made.key).expect("authenticates").key_id, made.id);
        assert!(matches!(keys.authenticate(&random_key()), Err(AccessError::InvalidKey)));
        assert_eq!(keys.recall(&made.key).expect("recalled").map(|caller| caller.key_id), Some(made.id));
        assert!(keys.recall(&random_key()).expect("looked").is_none());
        let stranger = Keys { keyed: keyed(&[0u8; 32]), ..Keys::open(&store).expect("keys") };
        assert!(matches!(stranger.authenticate(&made.key), Err(AccessError::InvalidKey)));
        keys.revoke("ci", "test").expect("revoke");
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(keys.recall(&made.key).expect("looked").is_none());
        assert!(matches!(keys.authenticate(&made.key), Err(AccessError::InvalidKey)));
        assert!(matches!(keys.revoke("ci", "test"), Err(AccessError::UnknownKey(_))));
    }
}
