//! Whether a denial is acted on: off, shadow or enforce, rolled out tenant by tenant.

use std::collections::HashSet;

use crate::tenant::TenantId;

/// What becomes of a denial; the greater is the stricter.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Licences are not looked up.
    Off,
    /// Denials are counted and recorded, the request goes on.
    Shadow,
    /// Denials are answered.
    Enforce,
}

impl Mode {
    /// As configuration, log and metrics write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Shadow => "shadow",
            Self::Enforce => "enforce",
        }
    }
}

/// The mode, and for which tenants `enforce` already holds; the others are shadowed.
#[derive(Clone, Debug)]
pub struct Enforcement {
    mode: Mode,
    rollout: Rollout,
}

/// Which share of the tenants is enforced.
#[derive(Clone, Debug)]
pub struct Rollout {
    /// The share, in percent, 0 to 100.
    pub percent: f64,
    /// Tenants that are in whatever the share is.
    pub include: HashSet<TenantId>,
    /// Tenants that are out whatever the share is, `include` among it: an exclusion is the safer mistake.
    pub exclude: HashSet<TenantId>,
    /// Another salt draws other tenants.
    pub salt: String,
}

impl Default for Rollout {
    fn default() -> Self {
        Self { percent: 100.0, include: HashSet::new(), exclude: HashSet::new(), salt: String::new() }
    }
}

impl Enforcement {
    /// `mode`, rolled out so.
    pub fn new(mode: Mode, rollout: Rollout) -> Self {
        Self { mode, rollout }
    }

    /// The configured mode, before any rollout.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What holds for `tenant` where a rule says `of_rule`, which stands in for the mode and leaves the rollout as it is.
    pub fn mode_for(&self, of_rule: Option<Mode>, tenant: Option<&TenantId>) -> Mode {
        match of_rule.unwrap_or(self.mode) {
            Mode::Enforce if !self.includes(tenant) => Mode::Shadow,
            mode => mode,
        }
    }

    /// Whether `tenant` is among those for whom `enforce` holds. A request without one can't be told apart from those still
    /// outside, so it is only once everyone is in.
    pub fn includes(&self, tenant: Option<&TenantId>) -> bool {
        tenant.map_or(self.rollout.percent >= 100.0, |tenant| self.rollout.contains(tenant))
    }

    /// Which share of the tenants is enforced.
    pub fn rollout(&self) -> &Rollout {
        &self.rollout
    }
}

impl Rollout {
    /// Whether `tenant` is in. Each tenant has a fixed place in 0..100 by the hash of salt and id, and is in once the share
    /// has passed it: who is in stays in as the share grows.
    fn contains(&self, tenant: &TenantId) -> bool {
        if !self.exclude.is_empty() && self.exclude.contains(tenant) {
            return false;
        }
        if self.percent >= 100.0 || (!self.include.is_empty() && self.include.contains(tenant)) {
            return true;
        }
        self.place(tenant) < self.percent
    }

    /// The share, in percent, from which on `tenant` is in.
    pub fn place(&self, tenant: &TenantId) -> f64 {
        const PLACES: u64 = 1 << 32;
        let salt = xxhash_rust::xxh3::xxh3_64(self.salt.as_bytes());
        let place = xxhash_rust::xxh3::xxh3_64_with_seed(tenant.as_uuid().as_bytes(), salt) % PLACES;
        place as f64 / PLACES as f64 * 100.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenants(n: u128) -> impl Iterator<Item = TenantId> {
        (0..n).map(|i| TenantId::new(uuid::Uuid::from_u128(i * 0x9e37_79b9_7f4a_7c15)))
    }

    fn enforced(percent: f64, salt: &str) -> HashSet<TenantId> {
        let rollout = Rollout { percent, salt: salt.into(), ..Rollout::default() };
        let enforcement = Enforcement::new(Mode::Enforce, rollout);
        tenants(10_000).filter(|tenant| enforcement.mode_for(None, Some(tenant)) == Mode::Enforce).collect()
    }

    #[test]
    fn the_share_is_kept_within_a_percent_and_only_grows() {
        let mut before = HashSet::new();
        for percent in [0.0, 0.5, 5.0, 25.0, 50.0, 99.0, 100.0] {
            let now = enforced(percent, "");
            let share = now.len() as f64 / 100.0;
            assert!((share - percent).abs() <= 1.0, "{percent} % gave {share} %");
            assert!(before.is_subset(&now), "a tenant fell out at {percent} %");
            before = now;
        }
    }

    #[test]
    fn the_draw_is_stable_over_versions_and_differs_by_salt() {
        let first = TenantId::new(uuid::Uuid::from_u128(1));
        let rollout = |percent| Rollout { percent, ..Rollout::default() };
        let place = (0..=1_000).find(|p| rollout(f64::from(*p) / 10.0).contains(&first));
        assert_eq!(place, Some(559), "changing the hash would swap tenants in the middle of a roll-out");
        assert_ne!(enforced(25.0, ""), enforced(25.0, "other"));
    }

    #[test]
    fn lists_and_missing_tenants() {
        let [a, b] = [1, 2].map(|n| TenantId::new(uuid::Uuid::from_u128(n)));
        let rollout = Rollout { percent: 0.0, include: [a, b].into(), exclude: [b].into(), salt: String::new() };
        let partial = Enforcement::new(Mode::Enforce, rollout);
        assert_eq!(partial.mode_for(None, Some(&a)), Mode::Enforce);
        assert_eq!(partial.mode_for(None, Some(&b)), Mode::Shadow, "exclude wins");
        assert_eq!(partial.mode_for(None, None), Mode::Shadow);
        assert_eq!(Enforcement::new(Mode::Enforce, Rollout::default()).mode_for(None, None), Mode::Enforce);
        for mode in [Mode::Off, Mode::Shadow] {
            assert_eq!(Enforcement::new(mode, Rollout::default()).mode_for(None, Some(&a)), mode);
        }
    }

    #[test]
    fn a_rule_stands_in_for_the_mode_and_not_for_the_rollout() {
        let [inside, outside] = [1, 2].map(|n| TenantId::new(uuid::Uuid::from_u128(n)));
        let rollout = Rollout { percent: 0.0, include: [inside].into(), ..Rollout::default() };
        for (mode, of_rule, of_inside, of_outside) in [
            (Mode::Enforce, None, Mode::Enforce, Mode::Shadow),
            (Mode::Enforce, Some(Mode::Shadow), Mode::Shadow, Mode::Shadow),
            (Mode::Enforce, Some(Mode::Off), Mode::Off, Mode::Off),
            (Mode::Shadow, Some(Mode::Enforce), Mode::Enforce, Mode::Shadow),
            (Mode::Off, Some(Mode::Enforce), Mode::Enforce, Mode::Shadow),
            (Mode::Off, Some(Mode::Shadow), Mode::Shadow, Mode::Shadow),
        ] {
            let enforcement = Enforcement::new(mode, rollout.clone());
            let applied = [inside, outside].map(|tenant| enforcement.mode_for(of_rule, Some(&tenant)));
            assert_eq!(applied, [of_inside, of_outside], "{mode:?}, of the rule {of_rule:?}");
        }
    }
}
