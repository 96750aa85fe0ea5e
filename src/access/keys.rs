//! API keys: 256 random bits, shown once, stored only as HMAC-SHA256 under a pepper that lies beside the database. A copy of the
//! database alone therefore opens nothing.

use super::bounds::Names;
use super::limits::LimitChanges;
use super::meter::{Meter, Moment, Owner};
use super::{AccessError, Bounds, Caller, Limits, Role, audit};
use crate::store::keys::{self as rows, KeyRow};
use crate::store::{Fresh, Statement, Store, StoreError, projects};
use crate::types::ids::{is_slug, new_id, push_hex};
use crate::types::time::now_ms;
use hmac::{Hmac, KeyInit, Mac};
use rand::Rng;
use serde_json::{Value, json};
use sha2::Sha256;
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const PREFIX: &str = "rk_";
/// How often a change is tried that others get in the way of.
const ATTEMPTS: u32 = 20;
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
    /// What limited keys and projects have used, by the key's id or `project/name`: it outlives the memory above.
    meters: Arc<Mutex<HashMap<String, Arc<Meter>>>>,
}

/// A key to make.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What its owner calls it.
    pub name: String,
    /// Project (tenant).
    pub project: String,
    /// What it may do.
    pub role: Role,
    /// What else it has.
    pub changes: Changes,
}

/// Changes of a key: none leaves a thing as it is, `Some(None)` takes it away.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// What its owner calls it.
    pub name: Option<String>,
    /// What it may do.
    pub role: Option<Role>,
    /// Names that it may call; none for all.
    pub routes: Option<Option<Vec<String>>>,
    /// When it ends, milliseconds.
    pub expires_at: Option<Option<i64>>,
    /// What it may use.
    pub limits: LimitChanges,
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
        Ok(Keys { store: store.clone(), keyed: keyed(&pepper(store.directory())?), known, meters: Arc::default() })
    }

    /// Makes a key without limits.
    ///
    /// # Errors
    /// As [`Keys::make`].
    pub fn create(&self, name: &str, project: &str, role: Role, actor: &str) -> Result<NewKey, AccessError> {
        self.make(Wanted { name: name.to_string(), project: project.to_string(), role, changes: Changes::default() }, actor)
    }

    /// Makes a key, with an audit row.
    ///
    /// # Errors
    /// [`AccessError::Name`] for an impossible name, project or limit; [`AccessError::Store`].
    pub fn make(&self, wanted: Wanted, actor: &str) -> Result<NewKey, AccessError> {
        let Wanted { name, project, role, changes } = wanted;
        check_project(&project)?;
        let key = random_key();
        let row = KeyRow {
            id: new_id("key"),
            name,
            project,
            role: role.word().to_string(),
            hint: hint(&key),
            hash: self.hash(&key),
            created_at: now_ms(),
            revoked_at: None,
            routes: None,
            expires_at: None,
            limits: Limits::default().to_row(),
        };
        let row = changed(row, changes)?;
        self.write("key.create", actor, &row, rows::insert(&row))?;
        Ok(NewKey { id: row.id, name: row.name, project: row.project, role: row.role.parse()?, key })
    }

    /// Changes an active key, given by id or by name; takes effect with the next request. Returns its row.
    ///
    /// # Errors
    /// [`AccessError::UnknownKey`], [`AccessError::AmbiguousName`], [`AccessError::Name`], [`AccessError::Changed`], [`AccessError::Store`].
    pub fn update(&self, id_or_name: &str, changes: Changes, actor: &str) -> Result<KeyRow, AccessError> {
        let mut attempts = 1..=ATTEMPTS;
        loop {
            let before = self.active(id_or_name)?;
            let row = changed(before.clone(), changes.clone())?;
            match self.write("key.update", actor, &row, rows::update(&before, &row)) {
                // Somebody changed something else of it: both changes hold.
                Err(AccessError::Changed(_)) if attempts.next().is_some() => {}
                written => return written.map(|()| row),
            }
        }
    }

    /// Gives an active key, given by id or by name, another secret; the old one is refused with the next request. Id, limits and usage
    /// stay.
    ///
    /// # Errors
    /// As [`Keys::update`].
    pub fn rotate(&self, id_or_name: &str, actor: &str) -> Result<NewKey, AccessError> {
        let mut row = self.active(id_or_name)?;
        let (key, old) = (random_key(), row.hash.clone());
        (row.hint, row.hash) = (hint(&key), self.hash(&key));
        self.write("key.rotate", actor, &row, rows::rotate(&row, &old))?;
        Ok(NewKey { id: row.id, name: row.name, project: row.project, role: row.role.parse()?, key })
    }

    /// An active key, given by id or by name.
    ///
    /// # Errors
    /// [`AccessError::UnknownKey`], [`AccessError::AmbiguousName`], [`AccessError::Store`].
    pub fn active(&self, id_or_name: &str) -> Result<KeyRow, AccessError> {
        let matches = |key: &KeyRow| key.revoked_at.is_none() && (key.id == id_or_name || key.name == id_or_name);
        let mut found: Vec<_> = self.list()?.into_iter().filter(matches).collect();
        if found.len() > 1 {
            return Err(AccessError::AmbiguousName(found.len(), id_or_name.to_string()));
        }
        found.pop().ok_or_else(|| AccessError::UnknownKey(id_or_name.to_string()))
    }

    /// The statement in one transaction with its audit row.
    fn write(&self, action: &str, actor: &str, row: &KeyRow, statement: Statement) -> Result<(), AccessError> {
        let detail = shown(row);
        let entry = audit::Entry { actor, action, subject: &row.id, detail: &detail };
        match audit::append_with(&self.store, entry, &[statement]) {
            Err(StoreError::Conflict(_)) => Err(AccessError::Changed(row.name.clone())),
            written => Ok(written?),
        }
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
    /// [`AccessError::UnknownKey`], [`AccessError::AmbiguousName`], [`AccessError::Changed`], [`AccessError::Store`].
    pub fn revoke(&self, id_or_name: &str, actor: &str) -> Result<KeyRow, AccessError> {
        let mut row = self.active(id_or_name)?;
        let at = now_ms();
        row.revoked_at = Some(at);
        self.write("key.revoke", actor, &row, rows::revoke(&row.id, at))?;
        self.forget(&row.id);
        Ok(row)
    }

    /// Who a presented key stands for, where that was looked up since the newest commit. Takes microseconds.
    ///
    /// # Errors
    /// [`AccessError::Store`].
    pub fn recall(&self, presented: &str) -> Result<Option<Caller>, AccessError> {
        if !is_well_formed(presented) {
            return Ok(None);
        }
        let known = self.known.get(self.known.generation()?, &self.hash(presented));
        // Time passes without anybody committing it.
        Ok(known.filter(|caller| caller.bounds.as_ref().is_none_or(|bounds| is_current(bounds.expires_at))))
    }

    /// Who a presented key stands for. Blocking; the comparison takes the same time for every key.
    ///
    /// # Errors
    /// [`AccessError::InvalidKey`] for an unknown, malformed, revoked or expired key.
    pub fn authenticate(&self, presented: &str) -> Result<Caller, AccessError> {
        if !is_well_formed(presented) {
            return Err(AccessError::InvalidKey);
        }
        let (generation, hash) = (self.known.generation()?, self.hash(presented));
        let row = rows::by_hash(self.store.db.as_ref(), &hash)?.ok_or(AccessError::InvalidKey)?;
        let stored = decode_hex(&row.hash).ok_or_else(|| StoreError::Corrupt(format!("hash of key {}", row.id)))?;
        let same = self.mac(presented).verify_slice(&stored).is_ok();
        if !same {
            return Err(AccessError::InvalidKey);
        }
        let caller = self.caller(row)?.ok_or(AccessError::InvalidKey)?;
        self.known.keep(generation, hash, caller.clone());
        Ok(caller)
    }

    /// Whom a key with this id stands for; none when it is unknown, revoked or past its end. Blocking.
    ///
    /// # Errors
    /// [`AccessError::Store`].
    pub fn caller_of(&self, id: &str) -> Result<Option<Caller>, AccessError> {
        rows::by_id(self.store.db.as_ref(), id)?.map_or(Ok(None), |row| self.caller(row))
    }

    fn caller(&self, row: KeyRow) -> Result<Option<Caller>, AccessError> {
        if row.revoked_at.is_some() || !is_current(row.expires_at) {
            self.forget(&row.id);
            return Ok(None);
        }
        let of_project = projects::limits(self.store.db.as_ref(), &row.project)?.unwrap_or_default();
        let owner = Owner::Key { id: row.id.clone(), name: row.name.clone(), project: row.project.clone() };
        let key = self.meter(row.id.clone(), &Limits::of(&row.limits)?, owner);
        let project = self.meter(format!("project/{}", row.project), &Limits::of(&of_project)?, Owner::Project(row.project.clone()));
        let names = names(row.routes.as_deref())?;
        let bounds = Bounds { names, expires_at: row.expires_at, meters: key.into_iter().chain(project).collect() };
        let bounds = (!bounds.is_empty()).then(|| Arc::new(bounds));
        Ok(Some(Caller { key_id: row.id, project: row.project, role: row.role.parse()?, bounds }))
    }

    /// How much of their budgets keys and projects have spent, as far as this process has looked at them.
    pub fn spent_ratios(&self) -> Vec<(Owner, f64)> {
        let now = Moment::now();
        let meters: Vec<_> = self.meters.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        meters.into_iter().filter_map(|meter| Some((meter.owner(), meter.spent_ratio(now)?))).collect()
    }

    /// Lets go of the meter of a key that has ended: calls on their way settle what they hold.
    fn forget(&self, id: &str) {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// The meter of whoever has limits, the same one each time.
    fn meter(&self, name: String, limits: &Limits, owner: Owner) -> Option<Arc<Meter>> {
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        if limits.is_empty() {
            if let Some(meter) = meters.remove(&name) {
                meter.bound_by(limits);
            }
            return None;
        }
        let meter = meters.entry(name).or_insert_with(|| Arc::new(Meter::new(owner.clone()))).clone();
        meter.belongs_to(owner);
        meter.bound_by(limits);
        Some(meter)
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

fn is_current(expires_at: Option<i64>) -> bool {
    expires_at.is_none_or(|end| now_ms() <= end)
}

/// First and last characters of a key, to recognise it by.
fn hint(key: &str) -> String {
    format!("{}…{}", &key[..7], &key[key.len() - 4..])
}

fn names(routes: Option<&str>) -> Result<Option<Names>, AccessError> {
    let read = |text| serde_json::from_str(text).map_err(|error| StoreError::Corrupt(format!("the routes of a key: {error}")));
    routes.map(|text| Names::new(read(text)?)).transpose()
}

/// A key's row with changes.
fn changed(mut row: KeyRow, changes: Changes) -> Result<KeyRow, AccessError> {
    let Changes { name, role, routes, expires_at, limits } = changes;
    row.name = name.unwrap_or(row.name);
    check_name(&row.name)?;
    row.role = role.map_or(row.role, |role| role.word().to_string());
    if let Some(routes) = routes {
        let names = routes.map(Names::new).transpose()?;
        row.routes = names.map(|names| json!(names.as_slice()).to_string());
    }
    row.expires_at = expires_at.unwrap_or(row.expires_at);
    row.limits = Limits::of(&row.limits)?.with(&limits)?.to_row();
    Ok(row)
}

/// A key as it is shown, by the command line and over HTTP: everything but its hash.
pub fn shown(row: &KeyRow) -> Value {
    let routes: Value = row.routes.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let KeyRow { id, name, project, role, hint, created_at, revoked_at, expires_at, limits, .. } = row;
    json!({"id": id, "name": name, "project": project, "role": role, "hint": hint, "routes": routes, "expires_at": expires_at,
        "requests_per_minute": limits.requests_per_minute, "tokens_per_minute": limits.tokens_per_minute,
        "budget_micro_usd": limits.budget_micro_usd, "budget_period": limits.budget_period,
        "created_at": created_at, "revoked_at": revoked_at})
}

fn check_name(name: &str) -> Result<(), AccessError> {
    if name.is_empty() || name.chars().count() > 64 || name.chars().any(char::is_control) {
        return Err(AccessError::Name { what: "key name", given: name.to_string(), expected: "1 to 64 printable characters" });
    }
    Ok(())
}

pub(super) fn check_project(project: &str) -> Result<(), AccessError> {
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

    #[test]
    fn a_remembered_key_ends_when_its_time_is_up_and_its_meter_outlives_the_memory() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(directory.path()).expect("store");
        let keys = Keys::open(&store).expect("keys");
        let changes = Changes {
            expires_at: Some(Some(now_ms() + 300)),
            limits: LimitChanges { requests_per_minute: Some(Some(3)), ..LimitChanges::default() },
            ..Changes::default()
        };
        let made = keys.make(Wanted { name: "ci".into(), project: "p".into(), role: Role::App, changes }, "test").expect("a key");
        let meter = |caller: Caller| caller.bounds.expect("bounds").meters[0].clone();
        let first = meter(keys.authenticate(&made.key).expect("authenticates"));
        assert!(keys.recall(&made.key).expect("looked").is_some());
        keys.update("ci", Changes { name: Some("other".into()), ..Changes::default() }, "test").expect("changed");
        assert!(Arc::ptr_eq(&first, &meter(keys.authenticate(&made.key).expect("authenticates"))), "what was counted is not forgotten");
        std::thread::sleep(std::time::Duration::from_millis(350));
        assert!(keys.recall(&made.key).expect("looked").is_none());
        assert!(matches!(keys.authenticate(&made.key), Err(AccessError::InvalidKey)));
        assert!(keys.caller_of(&made.id).expect("looked").is_none());
    }

    /// Changes one limit and another at the same time, again and again; after each round both must hold.
    fn both_hold(change: impl Fn(LimitChanges) + Sync, read: impl Fn() -> crate::store::keys::LimitsRow + Sync) {
        let of_requests = |n| LimitChanges { requests_per_minute: Some(Some(n)), ..LimitChanges::default() };
        let of_tokens = |n| LimitChanges { tokens_per_minute: Some(Some(n)), ..LimitChanges::default() };
        let (begin, end) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=150 {
                    begin.wait();
                    change(of_requests(round));
                    end.wait();
                }
            });
            let mut lost = 0;
            for round in 1..=150 {
                begin.wait();
                change(of_tokens(round));
                end.wait();
                let limits = read();
                let round = i64::try_from(round).expect("a small number");
                lost += i32::from((limits.requests_per_minute, limits.tokens_per_minute) != (Some(round), Some(round)));
            }
            assert_eq!(lost, 0, "rounds in which one change undid the other");
        });
    }

    #[test]
    fn two_changes_at_once_both_hold() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(directory.path()).expect("store");
        let keys = Keys::open(&store).expect("keys");
        let made = keys.create("ci", "shop", Role::App, "test").expect("create");
        let change = |limits| drop(keys.update(&made.id, Changes { limits, ..Changes::default() }, "test").expect("changed"));
        both_hold(change, || keys.active(&made.id).expect("there").limits);
        let change = |limits: LimitChanges| drop(crate::access::projects::set(&store, "shop", &limits, "test").expect("changed"));
        both_hold(change, || crate::access::projects::get(&store, "shop").expect("there").limits);
    }

    #[test]
    fn a_key_that_has_ended_has_no_meter() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(directory.path()).expect("store");
        let (keys, elsewhere) = (Keys::open(&store).expect("keys"), Keys::open(&store).expect("keys"));
        let limits = LimitChanges { requests_per_minute: Some(Some(3)), ..LimitChanges::default() };
        for revoked_here in [true, false] {
            let changes = Changes { limits: limits.clone(), ..Changes::default() };
            let made = keys.make(Wanted { name: "ci".into(), project: "p".into(), role: Role::App, changes }, "test").expect("a key");
            keys.authenticate(&made.key).expect("authenticates");
            assert_eq!(keys.meters.lock().expect("meters").len(), 1);
            match revoked_here {
                true => keys.revoke(&made.id, "test").expect("revoked"),
                false => elsewhere.revoke(&made.id, "test").expect("revoked"),
            };
            assert!(revoked_here || keys.authenticate(&made.key).is_err());
            assert_eq!(keys.meters.lock().expect("meters").len(), 0, "{revoked_here}");
        }
    }

    #[test]
    fn the_old_secret_ends_when_a_key_is_rotated() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let keys = Keys::open(&Store::open(directory.path()).expect("store")).expect("keys");
        let made = keys.create("ci", "default", Role::App, "test").expect("create");
        let turned = keys.rotate(&made.id, "test").expect("rotated");
        assert!(matches!(keys.authenticate(&made.key), Err(AccessError::InvalidKey)));
        assert_eq!(keys.authenticate(&turned.key).expect("authenticates").key_id, made.id);
    }
}
