//! Licences in a YAML file: the embedded source, for demos and tests. Read again when the file changes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::SystemTime;

use async_trait::async_trait;
use licensing::config::{LicenseEntry, PlanSettings, parse_licenses};
use licensing::license::License;
use licensing::tenant::TenantId;
use parking_lot::Mutex;

use super::{Answer, Source, StoreError, StoreName};

/// A file of licences.
pub(crate) struct FileSource {
    path: PathBuf,
    plans: Vec<PlanSettings>,
    read: Mutex<Read>,
}

#[derive(Default)]
struct Read {
    /// The file as it was when it was read: when it was changed, and its size.
    version: Option<(SystemTime, u64)>,
    licenses: HashMap<TenantId, License>,
}

impl FileSource {
    /// Read `path`. `plans` are those of the configuration: an entry without features has those of its plan.
    ///
    /// # Errors
    /// With a sentence that names file, line and column.
    pub(crate) fn open(path: PathBuf, plans: Vec<PlanSettings>) -> Result<Self, String> {
        let source = Self { path, plans, read: Mutex::default() };
        source.refresh(&mut source.read.lock())?;
        Ok(source)
    }

    /// Licences from a text that is compiled in.
    ///
    /// # Errors
    /// As [`FileSource::open`].
    pub(crate) fn from_text(name: &str, text: &str, plans: &[PlanSettings]) -> Result<Self, String> {
        let licenses = read(name, text, plans, 1)?;
        Ok(Self { path: PathBuf::new(), plans: Vec::new(), read: Mutex::new(Read { version: None, licenses }) })
    }

    /// Every licence, in the order of the tenants' ids.
    pub(crate) fn all(&self) -> Vec<License> {
        let mut licenses: Vec<License> = self.read.lock().licenses.values().cloned().collect();
        licenses.sort_by_key(|license| license.tenant);
        licenses
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
        *current = Read { licenses: read(&name, &text, &self.plans, revision)?, version };
        Ok(())
    }
}

#[async_trait]
impl Source for FileSource {
    async fn load(&self, tenants: &[TenantId]) -> Result<Vec<Answer>, StoreError> {
        let mut current = self.read.lock();
        self.refresh(&mut current).map_err(|message| StoreError::unavailable(StoreName::File, message))?;
        Ok(tenants.iter().map(|tenant| Ok(current.licenses.get(tenant).cloned())).collect())
    }

    async fn probe(&self) -> Result<(), StoreError> {
        let mut current = self.read.lock();
        self.refresh(&mut current).map_err(|message| StoreError::unavailable(StoreName::File, message))
    }

    fn queries_at_once(&self) -> usize {
        // Nothing is waited for: one is done before the next begins.
        1
    }

    fn name(&self) -> StoreName {
        StoreName::File
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
        usage_limits: entry.limits.iter().map(|(feature, limit)| (feature.to_string(), (*limit).into())).collect(),
        valid_from: entry.valid_from,
        valid_until: entry.valid_until,
        auto_renew: entry.auto_renew,
        revision,
    }
}
