//! `import-gravwell`: imports the objects of an existing Gravwell webserver through its public API.
//!
//! After each step, imported objects and their new ids are recorded in a state file, so that the same command can
//! resume. Users and groups that exist here under the same name are treated as the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use gravwell_env::checksummed_text;
use gravwell_env::data_dir::replace_file;
use gravwell_model::{Collection, Condition, Key, Op};
use gravwell_objects::Stored;
use gravwell_objects::history::Entry;
use gravwell_objects::kinds::KINDS;
use gravwell_objects::owned::Spec;

use crate::client::Client;
use crate::client::output::Output;
use crate::client::rest::{Rest, Trusting};
use crate::client::transact;
use crate::error::{CtlError, CtlResult};

/// Import users, dashboards and other objects from an existing Gravwell webserver.
///
/// Reads users, groups, preferences, dashboards, resources and search histories through the public API of the
/// existing webserver. Objects are created through the API of a webserver here, on behalf of their owners. Search
/// histories, which the API does not accept, are written to the log of --data-dir. Users and groups that exist here
/// under the same name are treated as the same. To resume, run the same command again. Passwords cannot be read
/// from the source: set new ones.
#[derive(Debug, clap::Args)]
pub struct ImportGravwell {
    /// URL of the existing webserver, https://host.
    #[arg(value_name = "URL")]
    pub source: String,
    /// File with an API token of the source; imports what the token's owner can see.
    #[arg(long, value_name = "FILE", conflicts_with = "user")]
    pub token_file: Option<PathBuf>,
    /// Administrator of the source; imports everything.
    #[arg(long, value_name = "NAME", requires = "password_file")]
    pub user: Option<String>,
    /// File with the password of --user.
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// URL of the webserver to import into, https://host.
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// Administrator of the webserver to import into.
    #[arg(long, value_name = "NAME", default_value = "admin")]
    pub to_user: String,
    /// File with the password of --to-user.
    #[arg(long, value_name = "FILE")]
    pub to_password_file: PathBuf,
    /// File that records the imported objects; needed to resume an interrupted import.
    #[arg(long, value_name = "FILE", default_value = "import-gravwell.json")]
    pub state: PathBuf,
    /// CA certificates to verify the certificates of both webservers.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Do not verify certificates.
    #[arg(long, conflicts_with = "ca")]
    pub insecure: bool,
    /// Print what would be created without changing anything.
    #[arg(long)]
    pub dry_run: bool,
}

/// Number of searches in one transaction.
const SEARCHES_PER_TXN: usize = 100;

/// Imported objects by their ids at the source.
#[derive(Default, Serialize, Deserialize)]
struct State {
    source: String,
    users: BTreeMap<i64, i64>,
    groups: BTreeMap<i64, i64>,
    /// Completed steps, `kind/name`, with the id of the created object, if any.
    done: BTreeMap<String, String>,
}

impl State {
    /// Writes the state with a checksum, atomically.
    fn save(&self, path: &Path) -> CtlResult {
        let text = serde_json::to_string_pretty(self).map_err(CtlError::new)?;
        replace_file(path, checksummed_text::seal(&text).as_bytes()).map_err(CtlError::new)
    }
}

/// Result of the import.
#[derive(Default, Serialize)]
struct Report {
    dry_run: bool,
    created: BTreeMap<&'static str, u64>,
    found: BTreeMap<&'static str, u64>,
    /// Objects that were not imported, with the reason.
    left: Vec<String>,
}

struct Migration {
    source: Rest,
    target: Rest,
    /// Whether the source shows objects of other users.
    sees_all: bool,
    state: State,
    path: PathBuf,
    report: Report,
    searches: Vec<Entry>,
}

fn number(value: &Value, name: &str) -> i64 {
    value[name].as_i64().unwrap_or_default()
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

fn secret(file: &Path) -> Result<String, CtlError> {
    let read = std::fs::read_to_string(file);
    read.map(|text| text.trim().to_owned()).map_err(|error| CtlError::new(format!("{}: {error}", file.display())))
}

/// `import-gravwell`
pub(super) async fn run(dir: &Path, json: bool, args: ImportGravwell) -> CtlResult {
    let dir = dir.to_owned();
    let (report, searches, state, path) = tokio::task::spawn_blocking(move || {
        let mut migration = Migration::begin(&args)?;
        migration.all()?;
        let Migration { report, searches, state, path, .. } = migration;
        Ok::<_, CtlError>((report, searches, state, path))
    })
    .await
    .map_err(CtlError::new)??;
    let report = histories(&dir, report, searches, state, &path).await?;
    let mut output = Output::new();
    if json {
        output.json(&report)?;
    } else {
        let verb = if report.dry_run { "would be created" } else { "created" };
        for (kind, count) in &report.created {
            output.line(&format!("{kind}: {count} {verb}"))?;
        }
        for (kind, count) in &report.found {
            output.line(&format!("{kind}: {count} already existed"))?;
        }
        report.left.iter().try_for_each(|what| output.line(&format!("not imported: {what}")))?;
    }
    output.flush()
}

impl Migration {
    fn begin(args: &ImportGravwell) -> Result<Migration, CtlError> {
        let trusting = Trusting { insecure: args.insecure, ca: args.ca.as_deref() };
        let source = match (&args.token_file, &args.user, &args.password_file) {
            (Some(file), ..) => Rest::with_token(&args.source, &secret(file)?, &trusting)?,
            (None, Some(user), Some(file)) => Rest::login(&args.source, user, &secret(file)?, &trusting)?,
            _ => return Err(CtlError { message: "pass --token-file, or --user and --password-file".into(), exit: 2 }),
        };
        let target = Rest::login(&args.to, &args.to_user, &secret(&args.to_password_file)?, &trusting)?;
        let path = args.state.clone();
        let wrong = |error: String| {
            let path = path.display();
            CtlError::new(format!("{path}: {error}; restore a copy, or remove it to import everything again"))
        };
        let state: State = match std::fs::read_to_string(&path) {
            // Earlier versions wrote no checksum.
            Ok(text) if text.trim_end().ends_with('}') => {
                serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?
            }
            Ok(text) => {
                let body = checksummed_text::open(&text).map_err(wrong)?;
                serde_json::from_str(body).map_err(|error| wrong(error.to_string()))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                State { source: args.source.clone(), ..State::default() }
            }
            Err(error) => return Err(wrong(error.to_string())),
        };
        if state.source != args.source {
            let (path, other) = (path.display(), &state.source);
            return Err(CtlError::new(format!("{path} belongs to {other}; choose another file with --state")));
        }
        let sees_all = args.token_file.is_none() && source.get("/api/users/preferences").is_ok();
        let report = Report { dry_run: args.dry_run, ..Report::default() };
        let migration = Migration { source, target, sees_all, state, path, report, searches: Vec::new() };
        // Detect an unwritable file before anything is created.
        migration.save()?;
        Ok(migration)
    }

    fn all(&mut self) -> CtlResult {
        self.groups()?;
        let users = self.source.list("/api/users")?;
        self.users(&users)?;
        for user in &users {
            self.preferences(user)?;
            self.searches_of(user)?;
        }
        self.dashboards()?;
        KINDS.iter().filter_map(|kind| kind.spec).try_for_each(|spec| self.owned(spec))?;
        self.resources()?;
        self.report
            .left
            .push("passwords: the API does not return them; users have random ones, set new ones".to_owned());
        if !self.sees_all {
            let what = "objects that the token's owner cannot see; use --user with an administrator to import them";
            self.report.left.push(what.to_owned());
        }
        Ok(())
    }

    fn save(&self) -> CtlResult {
        if self.report.dry_run {
            return Ok(());
        }
        self.state.save(&self.path)
    }

    fn is_done(&mut self, kind: &'static str, name: &str) -> bool {
        let is_done = self.state.done.contains_key(&format!("{kind}/{name}"));
        if is_done {
            *self.report.found.entry(kind).or_default() += 1;
        }
        is_done
    }

    /// Runs one step unless this is a dry run. A failed step is reported and does not stop the import.
    fn step(
        &mut self,
        kind: &'static str,
        name: &str,
        work: impl FnOnce(&Migration) -> Result<String, CtlError>,
    ) -> Result<Option<String>, CtlError> {
        if self.report.dry_run {
            *self.report.created.entry(kind).or_default() += 1;
            return Ok(None);
        }
        match work(self) {
            Ok(became) => {
                *self.report.created.entry(kind).or_default() += 1;
                self.state.done.insert(format!("{kind}/{name}"), became.clone());
                self.save()?;
                Ok(Some(became))
            }
            Err(error) => {
                self.report.left.push(format!("{kind} {name}: {}", error.message));
                Ok(None)
            }
        }
    }

    fn groups(&mut self) -> CtlResult {
        let here = self.target.list("/api/groups")?;
        for group in self.source.list("/api/groups")? {
            let (gid, name) = (number(&group, "GID"), text(&group, "Name"));
            if let Some(found) = here.iter().find(|found| text(found, "Name") == name) {
                self.state.groups.insert(gid, number(found, "GID"));
                *self.report.found.entry("groups").or_default() += 1;
                continue;
            }
            let body = json!({ "Name": name, "Desc": text(&group, "Desc") });
            let made =
                self.step("groups", &name, |this| Ok(this.target.send("POST", "/api/groups", &body)?.to_string()))?;
            if let Some(made) = made.and_then(|made| made.parse().ok()) {
                self.state.groups.insert(gid, made);
                self.save()?;
            }
        }
        Ok(())
    }

    fn users(&mut self, users: &[Value]) -> CtlResult {
        let here = self.target.list("/api/users")?;
        for user in users {
            let (uid, name) = (number(user, "UID"), text(user, "User"));
            if let Some(found) = here.iter().find(|found| text(found, "User") == name) {
                self.state.users.insert(uid, number(found, "UID"));
                *self.report.found.entry("users").or_default() += 1;
            } else {
                let made = self.step("users", &name, |this| this.create_user(user))?;
                if let Some(made) = made.and_then(|made| made.parse().ok()) {
                    self.state.users.insert(uid, made);
                    self.save()?;
                }
            }
            self.memberships(user)?;
        }
        Ok(())
    }

    fn create_user(&self, user: &Value) -> Result<String, CtlError> {
        let mut password = [0; 24];
        getrandom::fill(&mut password).map_err(CtlError::new)?;
        let password: String = password.iter().map(|byte| format!("{byte:02x}")).collect();
        let body = json!({
            "User": text(user, "User"), "Pass": format!("{password}Aa1!"), "Name": text(user, "Name"),
            "Email": text(user, "Email"), "Admin": user["Admin"].as_bool().unwrap_or(false),
        });
        let uid = self.target.send("POST", "/api/users", &body)?.to_string();
        if user["Locked"].as_bool() == Some(true) {
            self.target.send("PUT", &format!("/api/users/{uid}/lock"), &json!({}))?;
        }
        Ok(uid)
    }

    fn memberships(&mut self, user: &Value) -> CtlResult {
        let Some(uid) = self.state.users.get(&number(user, "UID")).copied() else { return Ok(()) };
        let groups = user["Groups"].as_array().cloned().unwrap_or_default();
        let gids = self.gids(groups.iter().map(|group| number(group, "GID")));
        let name = text(user, "User");
        if gids.is_empty() || self.is_done("memberships", &name) {
            return Ok(());
        }
        let body = json!({ "GIDs": gids });
        self.step("memberships", &name, |this| {
            this.target.send("POST", &format!("/api/users/{uid}/group"), &body).map(|_| String::new())
        })?;
        Ok(())
    }

    fn gids(&self, gids: impl Iterator<Item = i64>) -> Vec<i64> {
        gids.filter_map(|gid| self.state.groups.get(&gid).copied()).collect()
    }

    fn gids_in(&self, value: &Value, name: &str) -> Vec<i64> {
        self.gids(value[name].as_array().into_iter().flatten().filter_map(Value::as_i64))
    }

    fn preferences(&mut self, user: &Value) -> CtlResult {
        let (uid, name) = (number(user, "UID"), text(user, "User"));
        if self.is_done("preferences", &name) {
            return Ok(());
        }
        let Ok(preferences) = self.source.get(&format!("/api/users/{uid}/preferences")) else { return Ok(()) };
        if preferences.is_null() {
            return Ok(());
        }
        let here = self.state.users.get(&uid).copied();
        self.step("preferences", &name, |this| {
            let uid = here.ok_or_else(|| CtlError::new("the user was not imported"))?;
            this.target.send("PUT", &format!("/api/users/{uid}/preferences"), &preferences).map(|_| String::new())
        })?;
        Ok(())
    }

    fn searches_of(&mut self, user: &Value) -> CtlResult {
        let uid = number(user, "UID");
        let Ok(searches) = self.source.list(&format!("/api/searchhistory/user/{uid}")) else { return Ok(()) };
        let Some(here) = self.state.users.get(&uid).and_then(|uid| i32::try_from(*uid).ok()) else {
            if self.report.dry_run {
                *self.report.created.entry("searches").or_default() += searches.len() as u64;
            }
            return Ok(());
        };
        for mut search in searches {
            let hash = blake3::hash(search.to_string().as_bytes()).to_hex();
            let gids = self.gids_in(&search, "GIDs");
            let gid = self.state.groups.get(&number(&search, "GID")).copied().unwrap_or(0);
            search["ID"] = json!("");
            (search["UID"], search["GID"], search["GIDs"]) = (json!(here), json!(gid), json!(gids));
            match serde_json::from_value::<Entry>(search) {
                Ok(mut entry) => {
                    // The key is derived from the search, so that a repeated import finds it again.
                    entry.id = format!("{:012x}-{}", entry.launched.ms(), &hash[..8]);
                    self.searches.push(entry);
                }
                Err(error) => self.report.left.push(format!("a search of {}: {error}", text(user, "User"))),
            }
        }
        Ok(())
    }

    fn owned_by(&self, uid: i64) -> Result<Rest, CtlError> {
        let here = self.state.users.get(&uid).ok_or_else(|| CtlError::new("its owner was not imported"))?;
        self.target.become_user(*here)
    }

    fn dashboards(&mut self) -> CtlResult {
        let all = self.source.list("/api/dashboards/all").or_else(|_| self.source.list("/api/dashboards"))?;
        for dashboard in all {
            let name = number(&dashboard, "ID").to_string();
            if self.is_done("dashboards", &name) {
                continue;
            }
            self.step("dashboards", &name, |this| {
                let mut body = json!({ "GIDs": this.gids_in(&dashboard, "GIDs") });
                for field in ["Name", "Description", "Labels", "Data", "Global"] {
                    body[field] = dashboard[field].clone();
                }
                let here = this.state.users.get(&number(&dashboard, "UID"));
                body["UID"] = json!(here.ok_or_else(|| CtlError::new("its owner was not imported"))?);
                Ok(this.target.send("POST", "/api/dashboards", &body)?.to_string())
            })?;
        }
        Ok(())
    }

    /// Imports the objects of a kind of the generic resource.
    fn owned(&mut self, spec: &'static Spec) -> CtlResult {
        let all = match self.source.list(&format!("{}?admin=true", spec.path)) {
            Ok(all) => all,
            Err(error) => {
                self.report.left.push(format!("{}: {}", spec.plural, error.message));
                return Ok(());
            }
        };
        for object in all {
            let id = &object[spec.wire.id];
            let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
            if self.is_done(spec.collection, &id) {
                continue;
            }
            self.step(spec.collection, &id, |this| this.owned_object(spec, &id))?;
        }
        Ok(())
    }

    fn owned_object(&self, spec: &Spec, id: &str) -> Result<String, CtlError> {
        let path = format!("{}/{id}", spec.path);
        // Members of clients are copied as text, so that the digits of numbers and the order of members stay.
        let mut text = String::new();
        std::io::Read::read_to_string(&mut self.source.raw(&path)?, &mut text).map_err(CtlError::new)?;
        let wrong = |error: serde_json::Error| CtlError::new(format!("{path}: {error}"));
        let object: Value = serde_json::from_str(&text).map_err(wrong)?;
        let members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&text).map_err(wrong)?;
        let uid = self.state.users.get(&number(&object, "UID"));
        let uid = uid.ok_or_else(|| CtlError::new("its owner was not imported"))?;
        let writers = &object["WriteAccess"];
        let own = json!({
            "UID": uid,
            "GIDs": self.gids_in(&object, "GIDs"),
            "WriteAccess": { "Global": writers["Global"] == true, "GIDs": self.gids_in(writers, "GIDs") },
        });
        let fields = spec.fields.iter().map(|field| field.name);
        let kept = ["GUID", "Global", "Name", spec.wire.description, "Labels"].into_iter().chain(fields);
        let mut body: BTreeMap<&str, &RawValue> = kept.filter_map(|name| Some((name, &**members.get(name)?))).collect();
        let own: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&own.to_string()).map_err(wrong)?;
        body.extend(own.iter().map(|(name, value)| (name.as_str(), &**value)));
        let made = self.target.send("POST", spec.path, &body)?;
        let made = if made.is_object() { &made[spec.wire.id] } else { &made };
        Ok(made.as_str().map_or_else(|| made.to_string(), str::to_owned))
    }

    fn resources(&mut self) -> CtlResult {
        for resource in self.source.list("/api/resources?admin=true")? {
            let guid = text(&resource, "GUID");
            if self.is_done("resources", &guid) {
                continue;
            }
            self.step("resources", &guid, |this| this.resource(&resource))?;
        }
        Ok(())
    }

    fn resource(&self, resource: &Value) -> Result<String, CtlError> {
        let owner = self.owned_by(number(resource, "UID"))?;
        let mut body = json!({});
        for field in ["ResourceName", "Description", "Labels"] {
            body[field] = resource[field].clone();
        }
        let mut made = owner.send("POST", "/api/resources", &body)?;
        let guid = text(&made, "GUID");
        if number(resource, "Size") > 0 {
            let contents = self.source.raw(&format!("/api/resources/{}/raw", text(resource, "GUID")))?;
            owner.put_raw(&format!("/api/resources/{guid}/raw"), contents)?;
        }
        // The administrator shares the resource: its owner need not be a member of the groups that it was shared with.
        let (groups, is_global) = (self.gids_in(resource, "GroupACL"), resource["Global"].as_bool() == Some(true));
        if is_global || !groups.is_empty() {
            made = self.target.get(&format!("/api/resources/{guid}"))?;
            (made["Global"], made["GroupACL"]) = (json!(is_global), json!(groups));
            self.target.send("PUT", &format!("/api/resources/{guid}"), &made)?;
        }
        Ok(guid)
    }
}

/// Imports search histories. The API cannot write them, so they are written to the log, each search on the condition
/// that it does not exist.
async fn histories(
    dir: &Path,
    mut report: Report,
    searches: Vec<Entry>,
    mut state: State,
    path: &Path,
) -> Result<Report, CtlError> {
    let (known, new): (Vec<Entry>, Vec<Entry>) =
        searches.into_iter().partition(|entry| state.done.contains_key(&format!("searches/{}", entry.key())));
    if !known.is_empty() {
        report.found.insert("searches", known.len() as u64);
    }
    if report.dry_run || new.is_empty() {
        *report.created.entry("searches").or_default() += new.len() as u64;
        return Ok(report);
    }
    let client = match Client::open(dir).await {
        Ok(client) => client,
        Err(error) => {
            let count = new.len();
            report.left.push(format!(
                "{count} searches of histories: the API does not accept them; pass the directory of a datastore or \
                 webserver with --data-dir to write them to the log ({})",
                error.message
            ));
            return Ok(report);
        }
    };
    let collection = Collection::new(Entry::COLLECTION).map_err(CtlError::new)?;
    for some in new.chunks(SEARCHES_PER_TXN) {
        let (mut ops, mut conditions) = (Vec::new(), Vec::new());
        for entry in some {
            let (collection, key) = (collection.clone(), Key::new(entry.key()).map_err(CtlError::new)?);
            let value = serde_json::to_vec(entry).map_err(CtlError::new)?.into();
            conditions.push(Condition::Absent { collection: collection.clone(), key: key.clone() });
            ops.push(Op::Put { collection, key, value });
        }
        use gravwell_model::codec::message::TxnOutcome;
        match transact::submit(&client, ops, conditions, true).await? {
            TxnOutcome::Committed(_) | TxnOutcome::Decided(_) | TxnOutcome::Queued => {
                *report.created.entry("searches").or_default() += some.len() as u64;
                state.done.extend(some.iter().map(|entry| (format!("searches/{}", entry.key()), String::new())));
            }
            TxnOutcome::Rejected(_, reason) => report.left.push(format!("{} searches: {reason}", some.len())),
            TxnOutcome::Gap(_) => report.left.push(format!("{} searches: out of order", some.len())),
            TxnOutcome::Deferred(refused) => report.left.push(format!("{} searches: {}", some.len(), refused.message)),
        }
    }
    client.close().await;
    state.save(path)?;
    Ok(report)
}
