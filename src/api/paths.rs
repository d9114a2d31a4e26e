//! Which requests the proxy answers itself: those whose path is, byte for byte, one of its own.

use licensing::config::ApiSettings;

/// The paths of the licence API, each once, with what is served there.
#[derive(Debug, Default)]
pub(crate) struct ApiPaths(Vec<(Box<[u8]>, Endpoint)>);

/// What is served at a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// The licence, by GET.
    pub(crate) document: bool,
    /// What is sold, by GET.
    pub(crate) offers: bool,
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
        let mut paths = Self::default();
        for path in &settings.paths {
            paths.at(path).document = true;
            paths.at(&format!("{path}/plans")).offers = true;
            paths.at(&format!("{path}/upgrade-click")).click = true;
            if upgrades {
                paths.at(&format!("{path}/upgrade")).upgrade = true;
            }
        }
        for path in &settings.websocket {
            paths.at(path).websocket = true;
        }
        paths
    }

    fn at(&mut self, path: &str) -> &mut Endpoint {
        let path = path.as_bytes();
        let place = self.0.iter().position(|(own, _)| **own == *path).unwrap_or_else(|| {
            self.0.push((path.into(), Endpoint::default()));
            self.0.len() - 1
        });
        &mut self.0[place].1
    }

    /// What is served at the path of a raw target. Other spellings of the same path go the way of all requests: a backend
    /// may tell them apart.
    pub(crate) fn endpoint(&self, raw_target: &[u8]) -> Option<Endpoint> {
        let path = memchr::memchr(b'?', raw_target).map_or(raw_target, |query| &raw_target[..query]);
        self.0.iter().find(|(own, _)| **own == *path).map(|(_, endpoint)| *endpoint)
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
        let none = Endpoint::default();
        for path in ["/license", "/api/v1/license"] {
            let below = |name: &str| paths.endpoint(format!("{path}/{name}").as_bytes());
            assert_eq!(below("upgrade-click"), Some(Endpoint { click: true, ..none }));
            assert_eq!(below("plans"), Some(Endpoint { offers: true, ..none }));
            assert_eq!(below("plans?x"), below("plans"));
            assert_eq!((below("plans/"), below("Plans"), below("plan")), (None, None, None));
        }
        assert_eq!(paths.endpoint(b"/ws/license/plans"), None, "beside the document alone");
        let off = ApiSettings { paths: Vec::new(), websocket: Vec::new() };
        assert_eq!(ApiPaths::new(&off, true).endpoint(b"/license"), None);
    }
}
