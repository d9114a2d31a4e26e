//! What is wrong with a file, and where: problems with file, line, column, key and sentence.

use std::fmt;

/// A line and a column of a text, both counted from one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The line.
    pub line: u32,
    /// The column, in characters.
    pub column: u32,
}

/// Whether a problem keeps a file from being used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The file can't be used.
    Error,
    /// The file can be used, but probably says something else than was meant.
    Warning,
}

/// One thing that is wrong with a file.
///
/// Displayed on one line, as compilers do it, so that editors can jump there. The alternate form (`{:#}`) shows the line
/// of the file below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file's name, as it was given.
    pub file: String,
    /// Where in it.
    pub place: Place,
    /// The key that is concerned, such as `routes.rules[3].prefix`; empty for the file as a whole.
    pub key: String,
    /// What is wrong and what was expected.
    pub message: String,
    /// How bad it is.
    pub severity: Severity,
    /// The line of the file that `place` points into.
    pub source: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, column } = self.place;
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{}:{line}:{column}: {severity}: ", self.file)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        if f.alternate() && !self.source.is_empty() {
            let number = line.to_string();
            let indent = " ".repeat(column.saturating_sub(1) as usize);
            write!(f, "\n {number} | {}\n {:width$} | {indent}^", self.source, "", width = number.len())?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

/// Everything that is wrong with one file, errors and warnings, in the order of the file. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Gathers the problems of one file.
pub(super) struct Collector<'a> {
    file: &'a str,
    text: &'a str,
    found: Vec<Problem>,
}

impl<'a> Collector<'a> {
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, text, found: Vec::new() }
    }

    pub(super) fn add(&mut self, severity: Severity, place: Place, key: String, message: String) {
        // A tab is one column: it must be one column wide in the line that is shown, too.
        let source = self.text.lines().nth(place.line.saturating_sub(1) as usize).unwrap_or("").replace('\t', " ");
        self.found.push(Problem { file: self.file.to_owned(), place, key, message, severity, source });
    }

    pub(super) fn error(&mut self, place: Place, key: String, message: impl Into<String>) {
        self.add(Severity::Error, place, key, message.into());
    }

    pub(super) fn warning(&mut self, place: Place, key: String, message: impl Into<String>) {
        self.add(Severity::Warning, place, key, message.into());
    }

    /// `value` with the warnings, if nothing worse was found.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<(T, Vec<Problem>), Problems> {
        self.found.sort_by_key(|problem| (problem.place, problem.severity));
        match value {
            Some(value) if self.found.iter().all(|problem| problem.severity == Severity::Warning) => {
                Ok((value, self.found))
            }
            _ => Err(Problems(self.found)),
        }
    }
}
