//! What is sold, by GET: the same for every tenant, made once a configuration. No licence is looked up for it.

use licensing::config::Config;
use licensing::offers::Offers;
use licensing::plans::Plans;
use licensing::view::entity_tag;

use super::license::{Basis, Call, Reply};

/// The document, and its entity tag.
pub(crate) struct OffersDocument {
    text: String,
    entity_tag: String,
}

impl OffersDocument {
    /// What `config` sells, of which `plans` are.
    pub(crate) fn of(config: &Config, plans: &Plans) -> Self {
        let text = Offers::new(plans, &config.deny.upgrade_url, config.upgrade.as_ref()).to_json();
        Self { entity_tag: entity_tag(text.as_bytes()), text }
    }
}

/// GET: what is sold, for whoever may ask for a licence.
pub(crate) fn get(call: &Call<'_>) -> Reply {
    if let Err(refused) = call.tenant() {
        return refused;
    }
    let OffersDocument { text, entity_tag } = &call.snapshot.offers;
    Reply { answer: call.document(text.clone(), entity_tag.clone()), basis: Basis::default() }
}
