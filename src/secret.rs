//! A secret and where it came from: a file may hold another one tomorrow.

use std::fmt;
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};

/// A URL with a password in it, or a token. Never printed: the type does not print its content.
#[derive(Clone)]
pub(crate) struct Secret {
    /// As it was when the program started.
    first: SecretString,
    file: Option<PathBuf>,
}

impl Secret {
    /// From a text that does not change.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { first: SecretString::from(text.into()), file: None }
    }

    /// From a file that held `text` when it was read.
    pub(crate) fn from_file(text: impl Into<String>, file: PathBuf) -> Self {
        Self { first: SecretString::from(text.into()), file: Some(file) }
    }

    /// What it was when the program started.
    pub(crate) fn first(&self) -> &SecretString {
        &self.first
    }

    /// Whether both were the same when the program started.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.first.expose_secret().trim() == other.first.expose_secret().trim()
    }

    /// What it is now, if the file says another than `known`, which is in use. A file that can't be read or is empty, as one
    /// may be for a moment while it is replaced, changes nothing.
    pub(crate) fn changed(&self, known: &SecretString) -> Option<SecretString> {
        let file = self.file.as_ref()?;
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "a secret can't be read again");
                return None;
            }
        };
        let text = text.trim();
        (!text.is_empty() && text != known.expose_secret()).then(|| SecretString::from(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("file", &self.file).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_again() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let url = Secret::from_file("redis://:one@r", file.path().to_owned());
        let changed = |text: &str, known: &str| {
            std::fs::write(file.path(), text).expect("written");
            url.changed(&SecretString::from(known.to_owned())).map(|url| url.expose_secret().to_owned())
        };
        assert_eq!(changed("redis://:one@r\n", "redis://:one@r"), None);
        assert_eq!(changed("", "redis://:one@r"), None, "it is being replaced");
        assert_eq!(changed(" redis://:two@r\n", "redis://:one@r").as_deref(), Some("redis://:two@r"));
        assert_eq!(changed("redis://:two@r", "redis://:two@r"), None);
        let path = file.into_temp_path();
        path.close().expect("removed");
        assert!(url.changed(url.first()).is_none());
        assert!(Secret::new("redis://:one@r").changed(&SecretString::from("redis://r".to_owned())).is_none());
        assert!(!format!("{url:?}").contains("one"));
    }
}
