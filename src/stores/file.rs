//! Licences in a YAML file: the embedded source, for demos and tests. Read again when the file changes. Changes made here
//! are kept in memory, until then or until the process ends; their audit is the log.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use licensing::amend::{Addon, Command, Holding};
use licensing::config::{LicenseEntry, PlanSettings, parse_licenses};
use licensing::license::License;
use licensing::tenant::TenantId;
use parking_lot::{Mutex, MutexGuard};
use serde_json::json;

use super::ledger::{AuditEntry, Entered, Filter, Ledger, LedgerError, Order, Page};
use super::{Answer, Position, Source, StoreError, StoreName};

/// A file of licences.
pub(crate) struct FileSource {
    path: PathBuf,
    /// Those of the configuration, as of today.
    plans: ArcSwap<Vec<PlanSettings>>,
    read: Mutex<Read>,
}

#[derive(Default)]
struct Read {
    /// The file as it was when it was read: when it was changed, and its size.
    version: Option<(SystemTime, u64)>,
    licenses: HashMap<TenantId, License>,
    addons: HashMap<TenantId, Vec<Addon>>,
    /// What was entered lately under idempotency keys.
    entered: VecDeque<(TenantId, String, Command, Entered)>,
}

/// How many idempotency keys are remembered.
const KEYS: usize = 1_000;

impl FileSource {
    /// Read `path`. `plans` are those of the configuration: an entry without features has those of its plan.
    ///
    /// # Errors
    /// With a sentence that names file, line and column.
    pub(crate) fn open(path: PathBuf, plans: Vec<PlanSettings>) -> Result<Self, String> {
        let source = Self { path, plans: ArcSwap::from_pointee(plans), read: Mutex::default() };
        source.refresh(&mut source.read.lock())?;
        Ok(source)
    }

    /// Licences from a text that is compiled in.
    ///
    /// # Errors
    /// As [`FileSource::open`].
    pub(crate) fn from_text(name: &str, text: &str, plans: &[PlanSettings]) -> Result<Self, String> {
        let licenses = read(name, text, plans, 1)?;
        let read = Mutex::new(Read { licenses, ..Read::default() });
        Ok(Self { path: PathBuf::new(), plans: ArcSwap::default(), read })
    }

    /// Every licence, in the order of the tenants' ids.
    pub(crate) fn all(&self) -> Vec<License> {
        let mut licenses: Vec<License> = self.read.lock().licenses.values().cloned().collect();
        licenses.sort_by_key(|license| license.tenant);
        licenses
    }

    /// What holds now.
    fn current(&self) -> Result<MutexGuard<'_, Read>, StoreError> {
        let mut current = self.read.lock();
        self.refresh(&mut current).map_err(|message| StoreError::unavailable(StoreName::File, message))?;
        Ok(current)
    }

    /// Read the file again if it has changed. Each reading is a new revision of every licence.
    fn refresh(&self, current: &mut Read) -> Result<(), String> {
        if self.path.as_os_str().is_empty() {
            return Ok(());
        }
        let name = self.path.display().to_string();
        let unreadable = |error: std::io::Error| format!("the licence file {name} can't be read: {error}");
        let metadata = std::fs::metadata(&self.path).map_err(unreadable)?;
        let modified = metadata.modified().map_err(unreadable)?;
        let version = Some((modified, metadata.len()));
        if current.version == version {
            return Ok(());
        }
        let text = std::fs::read_to_string(&self.path).map_err(unreadable)?;
        let revision = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
        let revision = i64::try_from(revision).unwrap_or(i64::MAX);
        let licenses = read(&name, &text, &self.plans.load(), revision)?;
        *current = Read { licenses, version, ..Read::default() };
        Ok(())
    }
}

#[async_trait]
impl Source for FileSource {
    async fn load(&self, tenants: &[TenantId]) -> Result<Vec<Answer>, StoreError> {
        let current = self.current()?;
        Ok(tenants.iter().map(|tenant| Ok(current.licenses.get(tenant).cloned())).collect())
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.current().map(drop)
    }

    fn queries_at_once(&self) -> usize {
        // Nothing is waited for: one is done before the next begins.
        1
    }

    fn name(&self) -> StoreName {
        StoreName::File
    }
}

#[async_trait]
impl Ledger for FileSource {
    async fn enter(&self, order: &Order<'_>) -> Result<Entered, LedgerError> {
        let mut current = self.current()?;
        let Order { tenant, command, author, .. } = *order;
        if let Some(key) = &author.idempotency_key
            && let Some((.., earlier, entered)) = current.entered.iter().find(|(t, k, ..)| *t == tenant && k == key)
        {
            let repeated = Entered { repeated: true, ..entered.clone() };
            let repeats = order.repeats(&json!(earlier), entered.outcome);
            return if repeats { Ok(repeated) } else { Err(LedgerError::KeyReused) };
        }
        let before = current.holding(tenant);
        let (mut after, outcome) = order.outcome(&before);
        if let Some(license) = &mut after.license
            && before.license.as_ref() != Some(license)
        {
            license.revision = order.now.as_micros().max(license.revision + 1);
            current.licenses.insert(tenant, license.clone());
        }
        if after.addons != before.addons {
            current.addons.insert(tenant, after.addons.clone());
        }
        tracing::info!(
            %tenant, action = command.action(), command = %json!(command), actor = author.actor,
            reason = author.reason, request_id = author.request_id, %outcome, "audit"
        );
        let entered = Entered { before, after, outcome, repeated: false, position: None };
        if let Some(key) = &author.idempotency_key {
            if current.entered.len() >= KEYS {
                current.entered.pop_front();
            }
            current.entered.push_back((tenant, key.clone(), command.clone(), entered.clone()));
        }
        Ok(entered)
    }

    async fn holding(&self, tenant: TenantId) -> Result<Holding, StoreError> {
        Ok(self.current()?.holding(tenant))
    }

    async fn page(&self, filter: &Filter, after: Option<TenantId>) -> Result<Page, StoreError> {
        let Filter { plan, feature, ends_from, ends_before } = filter;
        let matches = |license: &License| {
            after.is_none_or(|after| license.tenant > after)
                && plan.as_ref().is_none_or(|plan| **plan == *license.plan)
                && feature.as_ref().is_none_or(|feature| license.features.contains(feature))
                && ends_from.is_none_or(|from| license.valid_until >= from)
                && ends_before.is_none_or(|before| license.valid_until < before)
        };
        let mut licenses: Vec<License> =
            self.current()?.licenses.values().filter(|license| matches(license)).cloned().collect();
        licenses.sort_by_key(|license| license.tenant);
        let licenses = licenses.into_iter().map(|license| (license.tenant, Ok(Some(license)))).collect();
        Ok(Page { licenses, is_last: true })
    }

    async fn audit(&self, _: TenantId, _: u32) -> Result<Vec<AuditEntry>, StoreError> {
        let message = "changes of licences in a file are written to the log, and kept nowhere else";
        Err(StoreError::unavailable(StoreName::File, message))
    }

    async fn notify(&self, _: &str) -> Result<Option<Position>, LedgerError> {
        Ok(None)
    }

    fn sell(&self, plans: &[PlanSettings]) {
        self.plans.store(Arc::new(plans.to_vec()));
    }
}

impl Read {
    fn holding(&self, tenant: TenantId) -> Holding {
        let addons = self.addons.get(&tenant).cloned().unwrap_or_default();
        Holding { license: self.licenses.get(&tenant).cloned(), addons }
    }
}

fn read(name: &str, text: &str, plans: &[PlanSettings], revision: i64) -> Result<HashMap<TenantId, License>, String> {
    let file = parse_licenses(name, text, plans).map_err(|problems| problems.to_string())?;
    Ok(file.entries.iter().map(|entry| (entry.tenant, license(entry, revision))).collect())
}

fn license(entry: &LicenseEntry, revision: i64) -> License {
    License {
        tenant: entry.tenant,
        plan: entry.plan.clone(),
        features: entry.features.iter().map(|feature| &**feature).collect(),
        features_until: BTreeMap::new(),
        usage_limits: entry.limits.iter().map(|(feature, limit)| (feature.to_string(), (*limit).into())).collect(),
        valid_from: entry.valid_from,
        valid_until: entry.valid_until,
        auto_renew: entry.auto_renew,
        revision,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans(names: &[&str]) -> Vec<PlanSettings> {
        let plan = |name: &&str| serde_json::json!({ "name": name, "features": ["crm"] });
        serde_json::from_value(names.iter().map(plan).collect()).expect("plans")
    }

    #[tokio::test]
    async fn what_is_read_later_goes_by_what_is_sold_by_then() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let tenant = TenantId::new(uuid::Uuid::from_u128(7));
        let write = |plan: &str| {
            std::fs::write(file.path(), format!("tenants: [{{ tenant_id: {tenant}, plan: {plan} }}]"))
                .expect("written");
        };
        write("starter");
        let source = FileSource::open(file.path().to_owned(), plans(&["starter"])).expect("licences");
        write("gold");
        assert!(source.load(&[tenant]).await.is_err(), "no such plan");
        source.sell(&plans(&["starter", "gold"]));
        let answers = source.load(&[tenant]).await.expect("a plan by now");
        let license = answers[0].as_ref().expect("readable").as_ref().expect("a licence");
        assert_eq!((&*license.plan, license.features.joined().as_str()), ("gold", "crm"));
    }
}
