//! Which rule each operation of a backend falls under, by the backend's own OpenAPI document.

use serde_json::Value;

/// What stands for a path parameter. No framework reads anything into it.
const PLACEHOLDER: &str = "x";

/// The fixed fields of a path item that are operations (OpenAPI 3.2, section 4.9).
const METHODS: [&str; 9] = ["get", "put", "post", "delete", "options", "head", "patch", "trace", "query"];

/// What a path falls under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// The rule at this position of the configuration.
    Rule(usize),
    /// No rule.
    Unmatched,
}

/// One operation of the backend, on one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The method, in upper case.
    pub method: String,
    /// The path as the document has it, behind the base path of the server.
    pub template: String,
    /// A path of that shape: what the rules were asked for.
    pub example: String,
    /// The document's name for the operation.
    pub id: Option<String>,
    /// The rule.
    pub matched: Match,
}

/// Every operation of a backend, by path and method in the order of the document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The operations.
    pub operations: Vec<Operation>,
}

/// Why a document can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenApiError {
    /// It says of itself that it is something else.
    #[error("expected an OpenAPI document of version 3, found {0}")]
    Version(String),
    /// A part is not what the specification says.
    #[error("{place}: expected {expected}")]
    Shape {
        /// Where, as a JSON pointer.
        place: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A path item refers to another file.
    #[error("{place}: the reference {reference:?} leads out of the document: bundle it first")]
    Reference {
        /// Where, as a JSON pointer.
        place: String,
        /// The reference.
        reference: String,
    },
}

impl Report {
    /// Ask `resolve` (method, path) for every operation of `document`.
    ///
    /// A path counts behind each base path that `servers` name. A base path given without a host is how frameworks announce
    /// a `root_path`, and such backends answer without it too: then the path counts alone as well.
    ///
    /// # Errors
    /// When `document` is no OpenAPI 3 document, or one in several files.
    pub fn new(document: &Value, mut resolve: impl FnMut(&str, &str) -> Match) -> Result<Self, OpenApiError> {
        match (document.get("openapi").and_then(Value::as_str), document.get("swagger")) {
            (Some(version), _) if version.starts_with("3.") => {}
            (Some(version), _) => return Err(OpenApiError::Version(format!("version {version}"))),
            (None, Some(version)) => return Err(OpenApiError::Version(format!("Swagger {version}"))),
            (None, None) => {
                return Err(OpenApiError::Version("a document without the member `openapi`".to_owned()));
            }
        }
        let root_bases = bases(document).unwrap_or_else(|| vec![String::new()]);
        let mut operations = Vec::new();
        let Some(paths) = document.get("paths") else {
            return Ok(Self { operations });
        };
        let paths = paths.as_object().ok_or_else(|| shape("/paths", "an object"))?;
        for (template, item) in paths.iter().filter(|(template, _)| !template.starts_with("x-")) {
            let place = format!("/paths/{}", template.replace('~', "~0").replace('/', "~1"));
            if !template.starts_with('/') {
                return Err(shape(&place, "a path that starts with a slash"));
            }
            let item = follow(document, item, &place)?;
            let item_bases = bases(item);
            for method in METHODS {
                let Some(operation) = item.get(method) else { continue };
                if !operation.is_object() {
                    return Err(shape(&format!("{place}/{method}"), "an object"));
                }
                let own_bases = bases(operation);
                for base in own_bases.as_ref().or(item_bases.as_ref()).unwrap_or(&root_bases) {
                    let template = format!("{base}{template}");
                    let (method, example) = (method.to_ascii_uppercase(), example(&template));
                    let matched = resolve(&method, &example);
                    let id = operation.get("operationId").and_then(Value::as_str).map(str::to_owned);
                    operations.push(Operation { method, template, example, id, matched });
                }
            }
        }
        Ok(Self { operations })
    }

    /// The operations that no rule matches.
    pub fn unmatched(&self) -> impl Iterator<Item = &Operation> {
        self.operations.iter().filter(|operation| operation.matched == Match::Unmatched)
    }
}

fn shape(place: &str, expected: &'static str) -> OpenApiError {
    OpenApiError::Shape { place: place.to_owned(), expected }
}

/// A path item, behind the references that lead to it.
fn follow<'a>(document: &'a Value, mut item: &'a Value, place: &str) -> Result<&'a Value, OpenApiError> {
    // A chain longer than this is a circle.
    for _ in 0..16 {
        if !item.is_object() {
            return Err(shape(place, "an object"));
        }
        let Some(reference) = item.get("$ref").and_then(Value::as_str) else {
            return Ok(item);
        };
        let target = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
        item = target
            .ok_or_else(|| OpenApiError::Reference { place: place.to_owned(), reference: reference.to_owned() })?;
    }
    Err(shape(place, "a reference that ends"))
}

/// The base paths that `servers` of `holder` name, without a slash at the end; nothing if it names no server.
fn bases(holder: &Value) -> Option<Vec<String>> {
    let servers = holder.get("servers")?.as_array().filter(|servers| !servers.is_empty())?;
    let mut bases = Vec::new();
    for server in servers {
        let mut url = server.get("url").and_then(Value::as_str).unwrap_or("/").to_owned();
        for (name, variable) in server.get("variables").and_then(Value::as_object).into_iter().flatten() {
            let default = variable.get("default").and_then(Value::as_str).unwrap_or(PLACEHOLDER);
            url = url.replace(&format!("{{{name}}}"), default);
        }
        let (has_host, path) = match url.split_once("//") {
            Some((_, rest)) => (true, rest.find('/').map_or("", |start| &rest[start..])),
            None => (false, url.as_str()),
        };
        let path = path.split(['?', '#']).next().unwrap_or("").trim_matches('/');
        let base = if path.is_empty() { String::new() } else { format!("/{path}") };
        let alone = (!has_host && !base.is_empty()).then(String::new);
        for base in std::iter::once(base).chain(alone) {
            if !bases.contains(&base) {
                bases.push(base);
            }
        }
    }
    Some(bases)
}

/// `template` with a harmless text for each parameter.
fn example(template: &str) -> String {
    let mut path = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((_, behind)) = after.split_once('}') else {
            break;
        };
        path.extend([before, PLACEHOLDER]);
        rest = behind;
    }
    path + rest
}

#[cfg(test)]
mod tests;
