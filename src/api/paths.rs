//! Which requests the proxy answers itself: those whose path is, byte for byte, one of its own.

use licensing::config::ApiSettings;

/// The paths of the licence API.
#[derive(Debug, Default)]
pub(crate) struct ApiPaths {
    documents: Vec<Box<[u8]>>,
    websockets: Vec<Box<[u8]>>,
    upgrades: Vec<Box<[u8]>>,
    clicks: Vec<Box<[u8]>>,
}

/// What is served at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// The licence, by GET.
    pub(crate) document: bool,
    /// A WebSocket that tells of changes.
    pub(crate) websocket: bool,
    /// Upgrades, by POST.
    pub(crate) upgrade: bool,
    /// Word of people who follow the way to an upgrade, by POST.
    pub(crate) click: bool,
}

impl ApiPaths {
    /// `upgrades`: whether licences are upgraded here; if not, those paths are the backend's.
    pub(crate) fn new(settings: &ApiSettings, upgrades: bool) -> Self {
        let bytes = |paths: &[String]| paths.iter().map(|path| path.as_bytes().into()).collect();
        let below =
            |name: &str| settings.paths.iter().map(|path| format!("{path}/{name}").into_bytes().into()).collect();
        Self {
            documents: bytes(&settings.paths),
            websockets: bytes(&settings.websocket),
            upgrades: if upgrades { below("upgrade") } else { Vec::new() },
            clicks: below("upgrade-click"),
        }
    }

    /// What is served at the path of a raw target. Other spellings of the same path go the way of all requests: a backend
    /// may tell them apart.
    pub(crate) fn endpoint(&self, raw_target: &[u8]) -> Option<Endpoint> {
        let path = memchr::memchr(b'?', raw_target).map_or(raw_target, |query| &raw_target[..query]);
        let names = |paths: &[Box<[u8]>]| paths.iter().any(|own| **own == *path);
        let endpoint = Endpoint {
            document: names(&self.documents),
            websocket: names(&self.websockets),
            upgrade: names(&self.upgrades),
            click: names(&self.clicks),
        };
        (endpoint.document || endpoint.websocket || endpoint.upgrade || endpoint.click).then_some(endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_compared_byte_for_byte() {
        let paths = ApiPaths::new(&ApiSettings::default(), true);
        let found = |target: &str| paths.endpoint(target.as_bytes()).map(|e| (e.document, e.websocket));
        for (target, expected) in [
            ("/license", Some((true, true))),
            ("/license?x=1", Some((true, true))),
            ("/api/v1/license", Some((true, false))),
            ("/ws/license", Some((false, true))),
            ("/license/", None),
            ("//license", None),
            ("/License", None),
            ("/licens%65", None),
            ("/license;x", None),
            ("/x/../license", None),
            ("http://app/license", None),
            ("/licenses", None),
            ("/", None),
            ("*", None),
        ] {
            assert_eq!(found(target), expected, "{target}");
        }
        for (upgrades, expected) in [(true, Some((false, true))), (false, None)] {
            let paths = ApiPaths::new(&ApiSettings::default(), upgrades);
            let found = paths.endpoint(b"/api/v1/license/upgrade").map(|e| (e.document, e.upgrade));
            assert_eq!(found, expected, "upgrades {upgrades}");
        }
        let click = paths.endpoint(b"/license/upgrade-click").map(|e| (e.document, e.upgrade, e.click));
        assert_eq!(click, Some((false, false, true)));
        let off = ApiSettings { paths: Vec::new(), websocket: Vec::new() };
        assert_eq!(ApiPaths::new(&off, true).endpoint(b"/license"), None);
    }
}
