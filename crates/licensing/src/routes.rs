//! Which rule a request falls under: the most specific in each reading of its target, the strictest over all readings.
//!
//! The rules stand in a trie by path segment. Two kinds of rule are matched differently, each so that a doubt never
//! opens anything. Gated and denied paths match loosely: without letter case, with whatever a router may cut from a
//! segment (`.json`, `;v=1`, trailing blanks), with and without a trailing slash. Exceptions (`access: always`) match
//! only as they are spelled. Whichever matches, the more specific pattern wins.

use std::{fmt, sync::Arc};

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::path::{Malformed, Reading, Target};

/// One routing rule, ready to be matched.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What it matches.
    pub pattern: Pattern,
    /// The methods it is for; empty is every method. GET includes HEAD, since frameworks answer HEAD by their GET
    /// handler.
    pub methods: Vec<String>,
    /// What a request that falls under it needs.
    pub access: Access,
}

/// The part of the path space that a rule is for. Segments in braces (`{id}`) stand for any one segment: to an exception a
/// non-empty one; to gated rules also for nothing, as in `/items/`, unless another rule is for that path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// The path itself and all below it, on segment boundaries.
    Prefix(String),
    /// The path alone.
    Path(String),
}

/// What a rule demands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// The tenant's licence must include this feature.
    Feature(Arc<str>),
    /// Everyone, tenant or not: a core module.
    Always,
    /// No one.
    Deny,
}

impl Rule {
    /// Whether the rule is for this method.
    pub fn is_for(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|own| answers(own, method))
    }

    /// Whether the rule matches only what is spelled exactly as it is.
    fn is_exact(&self) -> bool {
        self.access == Access::Always
    }

    /// Whether neither rule is the more specific for some method: both name it, or both are for all.
    fn shares_methods_with(&self, other: &Self) -> bool {
        match (self.methods.as_slice(), other.methods.as_slice()) {
            ([], []) => true,
            (own, others) => own.iter().any(|own| others.iter().any(|o| answers(own, o) || answers(o, own))),
        }
    }
}

/// For logs: `prefix /api/v1/crm`, `path /api/v1/customers/{id}/tickets [POST]`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pattern {
            Pattern::Prefix(path) => write!(f, "prefix {path}")?,
            Pattern::Path(path) => write!(f, "path {path}")?,
        }
        if self.methods.is_empty() { Ok(()) } else { write!(f, " [{}]", self.methods.join(" ")) }
    }
}

/// How the rules as a whole are applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteOptions {
    /// What becomes of a request that no rule matches.
    pub unmatched: Unmatched,
    /// What becomes of a target that has more than one reading.
    pub ambiguous: Ambiguous,
    /// Prefixes that the backend also answers under (`root_path`, mounts): with `/api`, the paths `/x` and `/api/x` are
    /// one, and every rule that holds for either holds for both.
    pub path_aliases: Vec<String>,
}

/// What becomes of a request that no rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unmatched {
    /// It passes.
    #[default]
    Allow,
    /// It is refused, as is a target of which one reading matches no rule. So where identifiers may hold an encoded
    /// slash, `/items/group%2Fname` needs a prefix: one of its readings is below `/items/{id}`.
    Deny,
}

/// What becomes of a target that has more than one reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ambiguous {
    /// The strictest reading decides.
    #[default]
    Strictest,
    /// It is refused, wherever its readings lead. That is for backends whose clients send nothing but plain paths:
    /// every percent-encoded byte, `/projects/group%2Fname` and `/customers/J%C3%BCrgen` among them, is a second
    /// reading.
    Refuse,
}

/// All rules, ready to be asked.
#[derive(Clone, Debug)]
pub struct Routes {
    rules: Vec<Rule>,
    /// The trie; the first node is the root.
    nodes: Vec<Node>,
    unmatched: Unmatched,
    ambiguous: Ambiguous,
}

/// A rule, and its place among the rules.
#[derive(Clone, Copy, Debug)]
pub struct Matched<'r> {
    /// The place at which it was given, from zero.
    pub index: usize,
    /// The rule.
    pub rule: &'r Rule,
}

/// What a request falls under, over all readings of its target, from the strictest to the mildest.
#[derive(Clone, Debug)]
pub enum Route<'r> {
    /// Refused by this rule; or, where there is none, since a reading matches no rule and `unmatched` is deny.
    Denied(Option<Matched<'r>>),
    /// Every one of these features is needed. At least one rule; first that of the path as it came, where that is
    /// gated.
    Gated(SmallVec<[Matched<'r>; 1]>),
    /// Core: for everyone.
    Always(Matched<'r>),
    /// No reading matches a rule.
    Unmatched,
}

/// Why a request has no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request line is not one that a sane client sends.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The target has several readings, and `ambiguous` is refuse.
    #[error("the request path can be read in more than one way")]
    Ambiguous,
}

impl Routes {
    /// Checks the rules and makes them ready. The first that is wrong, or matches what an earlier one does, is the
    /// error.
    pub fn try_new(rules: Vec<Rule>, options: RouteOptions) -> Result<Self, RouteError> {
        let aliases = (options.path_aliases.iter().enumerate())
            .map(|(index, alias)| alias_of(alias).map_err(|problem| RouteError { place: Place::Alias(index), problem }))
            .collect::<Result<Vec<_>, _>>()?;
        let shapes = (rules.iter().enumerate())
            .map(|(index, rule)| Shape::of(rule).map_err(|problem| RouteError { place: Place::Rule(index), problem }))
            .collect::<Result<Vec<_>, _>>()?;
        let mut routes =
            Self { rules, nodes: vec![Node::default()], unmatched: options.unmatched, ambiguous: options.ambiguous };
        for (index, shape) in shapes.iter().enumerate() {
            routes
                .insert(index, shape, |_, _| true)
                .map_err(|other| RouteError { place: Place::Rule(index), problem: Problem::Duplicate { other } })?;
        }
        for (index, shape) in shapes.iter().enumerate() {
            for variant in shape.under_aliases(&aliases, routes.rules[index].is_exact()) {
                routes.insert(index, &variant, |own, other| own.access != other.access).map_err(|other| {
                    RouteError { place: Place::Rule(index), problem: Problem::DuplicateByAlias { other } }
                })?;
            }
        }
        Ok(routes)
    }

    /// The route of a request: its method and its raw target, query and all.
    pub fn resolve(&self, method: &str, raw_target: &[u8]) -> Result<Route<'_>, Refusal> {
        self.route(method, &Target::parse(raw_target)?)
    }

    /// The same for a target that has been parsed.
    pub fn route(&self, method: &str, target: &Target<'_>) -> Result<Route<'_>, Refusal> {
        if method.is_empty() || method.bytes().any(|byte| byte.is_ascii_lowercase()) {
            return Err(Malformed::Method.into());
        }
        if self.ambiguous == Ambiguous::Refuse && target.is_ambiguous() {
            return Err(Refusal::Ambiguous);
        }
        let routes = target.readings().map(|reading| self.route_of(self.best(method, reading)));
        Ok(routes.reduce(Route::and).unwrap_or(self.route_of(None)))
    }

    /// The readings of a target, each with the rule that is the most specific there: what
    /// [the route](Self::route) is made of, for explaining it.
    pub fn readings<'a>(
        &'a self,
        method: &'a str,
        target: &'a Target<'_>,
    ) -> impl ExactSizeIterator<Item = (Reading<'a>, Option<Matched<'a>>)> {
        target.readings().map(move |reading| (reading, self.best(method, reading)))
    }

    /// The rules as they were given.
    pub fn rules(&self) -> impl ExactSizeIterator<Item = Matched<'_>> {
        self.rules.iter().enumerate().map(|(index, rule)| Matched { index, rule })
    }

    /// What one reading comes to.
    fn route_of<'r>(&self, best: Option<Matched<'r>>) -> Route<'r> {
        match best.map(|matched| (&matched.rule.access, matched)) {
            Some((Access::Deny, matched)) => Route::Denied(Some(matched)),
            Some((Access::Feature(_), matched)) => Route::Gated(smallvec::smallvec![matched]),
            Some((Access::Always, matched)) => Route::Always(matched),
            None if self.unmatched == Unmatched::Deny => Route::Denied(None),
            None => Route::Unmatched,
        }
    }

    /// The most specific rule in one reading.
    fn best(&self, method: &str, reading: Reading<'_>) -> Option<Matched<'_>> {
        let mut lower_case = SmallVec::<[u8; 256]>::new();
        let path = reading.bytes();
        let folded = if reading.has_upper_case() {
            lower_case.extend_from_slice(path);
            lower_case.make_ascii_lowercase();
            &lower_case
        } else {
            path
        };
        let walk = Walk { routes: self, method, path, folded, terminators: reading.has_terminators() };
        let index = walk.best(&self.nodes[0], 0)?;
        Some(Matched { index, rule: &self.rules[index] })
    }

    /// Puts a rule where its shape says; or names the rule that is there for some of the same requests and clashes.
    fn insert(&mut self, index: usize, shape: &Shape, clash: fn(&Rule, &Rule) -> bool) -> Result<(), usize> {
        let node = shape.segments.iter().fold(0, |node, segment| self.child(node, segment));
        let (rules, node) = (&self.rules, &mut self.nodes[node]);
        let ends = if shape.is_prefix { &mut node.prefixes } else { &mut node.paths };
        let rule = &rules[index];
        let end = End { rule: index, spelling: rule.is_exact().then(|| Box::new(shape.clone())) };
        let clashes = |there: &&End| {
            let other = &rules[there.rule];
            // Two exceptions of different case or end are different paths; all else is the same path to a gated rule.
            let same_path = there.spelling.is_none() || end.spelling.is_none() || there.spelling == end.spelling;
            there.rule != index && same_path && rule.shares_methods_with(other) && clash(rule, other)
        };
        if let Some(there) = ends.iter().find(clashes) {
            return Err(there.rule);
        }
        let named = ends.iter().take_while(|end| !rules[end.rule].methods.is_empty()).count();
        ends.insert(if rule.methods.is_empty() { ends.len() } else { named }, end);
        Ok(())
    }

    /// The child of a node for a segment, made if need be.
    fn child(&mut self, node: usize, segment: &Segment) -> usize {
        let next = self.nodes.len();
        let parent = &mut self.nodes[node];
        let child = match segment {
            Segment::Template => *parent.template.get_or_insert(next),
            Segment::Literal(literal) => {
                parent.lengths |= 1 << literal.len();
                *parent.literals.entry(literal.to_ascii_lowercase().into()).or_insert(next)
            }
        };
        if child == next {
            self.nodes.push(Node::default());
        }
        child
    }
}

impl<'r> Route<'r> {
    /// The stricter of two; of two gated ones, both.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (denied @ Route::Denied(Some(_)), _) | (_, denied @ Route::Denied(Some(_))) => denied,
            (denied @ Route::Denied(None), _) | (_, denied @ Route::Denied(None)) => denied,
            (Route::Gated(mut rules), Route::Gated(others)) => {
                for other in others {
                    if rules.iter().all(|rule| rule.index != other.index) {
                        rules.push(other);
                    }
                }
                Route::Gated(rules)
            }
            (gated @ Route::Gated(_), _) | (_, gated @ Route::Gated(_)) => gated,
            (always @ Route::Always(_), _) | (_, always @ Route::Always(_)) => always,
            (Route::Unmatched, Route::Unmatched) => Route::Unmatched,
        }
    }

    /// The rules that decided, in the order of the readings.
    pub fn rules(&self) -> &[Matched<'r>] {
        match self {
            Route::Denied(rule) => rule.as_slice(),
            Route::Gated(rules) => rules,
            Route::Always(rule) => std::slice::from_ref(rule),
            Route::Unmatched => &[],
        }
    }
}

/// Where the patterns that begin with the same segments meet.
#[derive(Clone, Debug, Default)]
struct Node {
    /// In lower case.
    literals: FxHashMap<Box<[u8]>, usize>,
    /// The lengths of the literals, a bit each: what is not one of them needs no look-up.
    lengths: u128,
    template: Option<usize>,
    /// The rules that end here, those that name methods first.
    paths: Vec<End>,
    prefixes: Vec<End>,
}

impl Node {
    fn literal(&self, folded: &[u8]) -> Option<usize> {
        if folded.len() > MAX_LITERAL || self.lengths >> folded.len() & 1 == 0 {
            return None;
        }
        count_probe();
        self.literals.get(folded).copied()
    }
}

/// The end of a pattern.
#[derive(Clone, Debug)]
struct End {
    rule: usize,
    /// How the path must be spelled, for an exception.
    spelling: Option<Box<Shape>>,
}

/// The search for the most specific rule in one reading: depth first, the more specific child first, so that what is
/// found first is the answer. No node is visited twice, since each is reached by one way only.
struct Walk<'w> {
    routes: &'w Routes,
    method: &'w str,
    path: &'w [u8],
    /// The path in lower case.
    folded: &'w [u8],
    /// Whether some segment can be taken to end before its end.
    terminators: bool,
}

impl Walk<'_> {
    /// The best rule at or below a node, whose own segments end at `at`: there is a slash or the end of the path.
    fn best(&self, node: &Node, at: usize) -> Option<usize> {
        let next = self.segment_behind(at);
        if let Some((start, end)) = next.filter(|(start, end)| start < end) {
            let below = self.below_literals(node, start, end).or_else(|| self.best_of(node.template?, end));
            if below.is_some() {
                return below;
            }
        }
        let (own, rest) = self.path.split_at(at);
        let paths = if rest.is_empty() || rest == b"/" { node.paths.as_slice() } else { &[] };
        let fits = |end: &&End| {
            self.routes.rules[end.rule].is_for(self.method)
                && end.spelling.as_ref().is_none_or(|shape| shape.spells(own, rest))
        };
        let first_of = |ends: &[End]| ends.iter().find(fits).map(|end| end.rule);
        // Fastify takes the nothing between two slashes, or behind the last, for a parameter.
        let nothing = || next.filter(|(start, end)| start == end);
        first_of(paths).or_else(|| self.best_of(node.template?, nothing()?.1)).or_else(|| first_of(&node.prefixes))
    }

    /// Where the segment behind the slash at `at` starts and ends; none at the end of the path.
    fn segment_behind(&self, at: usize) -> Option<(usize, usize)> {
        let rest = self.path.get(at + 1..)?;
        let length = memchr::memchr(b'/', rest).unwrap_or(rest.len());
        Some((at + 1, at + 1 + length))
    }

    fn best_of(&self, node: usize, at: usize) -> Option<usize> {
        self.best(&self.routes.nodes[node], at)
    }

    /// The best rule below the literals that the segment stands for: itself, then the longest that it continues.
    fn below_literals(&self, node: &Node, start: usize, end: usize) -> Option<usize> {
        let segment = &self.folded[start..end];
        let exact = node.literal(segment).and_then(|child| self.best_of(child, end));
        if exact.is_some() || !self.terminators {
            return exact;
        }
        let mut lengths = node.lengths & lengths_below(segment.len());
        while let Some(length) = lengths.checked_ilog2().map(|length| length as usize) {
            lengths &= lengths_below(length);
            let resume = match segment[length] {
                b'.' | b';' => end,
                // To who takes a decoded path for a URL, it ends here.
                b'?' | b'#' => self.path.len(),
                b' ' | 0..=0x1f | 0x7f => end,
                _ => continue,
            };
            let found = node.literal(&segment[..length]).filter(|_| terminates(&segment[length..]));
            let found = found.and_then(|child| self.best_of(child, resume));
            if found.is_some() {
                return found;
            }
        }
        None
    }
}

/// Whether a router may take a segment to end where `rest` begins: at a format, at parameters, at a decoded query or
/// fragment, or at nothing but dots and blanks.
fn terminates(rest: &[u8]) -> bool {
    match rest {
        [b'.' | b';' | b'?' | b'#', ..] => true,
        _ => rest.iter().all(|byte| matches!(byte, b'.' | b' ' | 0..=0x1f | 0x7f)),
    }
}

/// Whether a router may take a segment for this literal.
fn loosely_equals(segment: &[u8], literal: &[u8]) -> bool {
    segment
        .split_at_checked(literal.len())
        .is_some_and(|(head, rest)| head.eq_ignore_ascii_case(literal) && terminates(rest))
}

/// The bits of the lengths below this one.
fn lengths_below(length: usize) -> u128 {
    if length > MAX_LITERAL { u128::MAX } else { (1 << length) - 1 }
}

/// A pattern, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    segments: Vec<Segment>,
    /// Whether what is below matches too.
    is_prefix: bool,
    /// Whether it was written with a slash at its end. Gated rules do not care; to an exception it belongs to the path.
    slash: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(Box<[u8]>),
    Template,
}

impl Shape {
    fn of(rule: &Rule) -> Result<Self, Problem> {
        if let Some(method) = rule.methods.iter().find(|method| !is_method(method)) {
            return Err(Problem::Method(method.clone()));
        }
        match &rule.pattern {
            Pattern::Prefix(path) => Self::parse(path, true),
            Pattern::Path(path) => Self::parse(path, false),
        }
    }

    fn parse(path: &str, is_prefix: bool) -> Result<Self, Problem> {
        let Some(path) = path.strip_prefix('/') else {
            return Err(Problem::LeadingSlash);
        };
        let without_slash = if path.is_empty() { Some(path) } else { path.strip_suffix('/') };
        let inner = without_slash.unwrap_or(path);
        let segments = if inner.is_empty() && path.is_empty() {
            Vec::new()
        } else {
            inner.split('/').map(Segment::parse).collect::<Result<_, _>>()?
        };
        if segments.len() > MAX_SEGMENTS {
            return Err(Problem::TooDeep);
        }
        Ok(Self { segments, is_prefix, slash: without_slash.is_some() })
    }

    /// Whether a path, cut at the end of the pattern's own segments, is spelled exactly so.
    fn spells(&self, own: &[u8], rest: &[u8]) -> bool {
        let mut left = own;
        let segments = self.segments.iter().all(|segment| {
            let Some(inner) = left.strip_prefix(b"/") else {
                return false;
            };
            let (head, tail) = inner.split_at(memchr::memchr(b'/', inner).unwrap_or(inner.len()));
            left = tail;
            match segment {
                Segment::Literal(literal) => **literal == *head,
                Segment::Template => !head.is_empty(),
            }
        });
        let ends = if self.is_prefix { !self.slash || !rest.is_empty() } else { self.slash != rest.is_empty() };
        segments && left.is_empty() && ends
    }

    /// What the shape also stands for, given that the aliases can be left out of paths and put before them: itself
    /// without an alias, and before that and itself every alias.
    fn under_aliases(&self, aliases: &[Vec<Segment>], exact: bool) -> Vec<Self> {
        let bare: Vec<_> = aliases.iter().filter_map(|alias| self.without(alias, exact)).collect();
        let aliased = std::iter::once(self).chain(&bare).flat_map(|base| {
            aliases.iter().map(|alias| Self { segments: [alias.as_slice(), &base.segments].concat(), ..base.clone() })
        });
        let aliased: Vec<_> = aliased.collect();
        bare.into_iter().chain(aliased).collect()
    }

    /// What is left of the shape behind an alias, if anything that matches it begins with the alias.
    fn without(&self, alias: &[Segment], exact: bool) -> Option<Self> {
        let inside = alias.iter().zip(&self.segments).all(|pair| match pair {
            (Segment::Literal(alias), Segment::Literal(own)) if exact => alias == own,
            (Segment::Literal(alias), Segment::Literal(own)) => loosely_equals(alias, own),
            // A template may stand for the alias; an exception is not widened by that.
            (_, _) => !exact,
        });
        let rest = match self.segments.get(alias.len()..) {
            Some(rest) => rest.to_vec(),
            None if self.is_prefix && !exact => Vec::new(),
            None => return None,
        };
        inside.then_some(Self { slash: self.slash || rest.is_empty(), segments: rest, ..*self })
    }
}

impl Segment {
    fn parse(segment: &str) -> Result<Self, Problem> {
        if let Some(name) = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
            if !name.is_empty() && name.bytes().all(is_name) {
                return Ok(Self::Template);
            }
        }
        if segment.starts_with(':') || segment.contains(['{', '}', '<', '>', '*']) {
            return Err(Problem::Template(segment.to_owned()));
        }
        match segment {
            "" => Err(Problem::EmptySegment),
            "." | ".." => Err(Problem::DotSegment),
            _ if segment.len() > MAX_LITERAL => Err(Problem::LongSegment),
            _ => match segment.chars().find(|c| c.is_control() || matches!(c, '%' | '?' | '#' | '\\' | ';' | ' ')) {
                Some(character) => Err(Problem::Character(character)),
                None => Ok(Self::Literal(segment.as_bytes().into())),
            },
        }
    }
}

/// How many segments a pattern may have.
const MAX_SEGMENTS: usize = 64;

/// How many bytes a literal segment of a pattern may have: as many as there are bits for lengths.
const MAX_LITERAL: usize = u128::BITS as usize - 1;

fn alias_of(alias: &str) -> Result<Vec<Segment>, Problem> {
    let Shape { segments, .. } = Shape::parse(alias, true)?;
    if segments.is_empty() || segments.contains(&Segment::Template) {
        return Err(Problem::Alias);
    }
    Ok(segments)
}

/// Whether a request with this method may fall under a rule that names `own`.
pub(crate) fn answers(own: &str, method: &str) -> bool {
    own == method || (own == "GET" && method == "HEAD")
}

/// An HTTP token (RFC 9110, section 5.6.2) without lower-case letters.
fn is_method(method: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !method.is_empty() && method.bytes().all(is_token)
}

/// Why rules can't be used, and which.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct RouteError {
    place: Place,
    problem: Problem,
}

impl RouteError {
    /// Which rule or alias is wrong.
    pub fn place(&self) -> Place {
        self.place
    }

    /// What is wrong with it.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// The earlier rule that matches the same requests, where that is what is wrong.
    pub fn other(&self) -> Option<usize> {
        match self.problem {
            Problem::Duplicate { other } | Problem::DuplicateByAlias { other } => Some(other),
            _ => None,
        }
    }
}

/// Which of the things that routes are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The rule at this index.
    Rule(usize),
    /// The path alias at this index.
    Alias(usize),
}

/// What can be wrong with a rule or a path alias.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No slash at the start.
    #[error("a path must begin with a slash")]
    LeadingSlash,
    /// Two slashes in a row.
    #[error("a path must not hold an empty segment (`//`)")]
    EmptySegment,
    /// `.` or `..` as a segment.
    #[error("a path must not hold `.` or `..` as a segment")]
    DotSegment,
    /// A character that no path has once it is decoded, or that begins something else.
    #[error("a path must not hold {0:?}: write it decoded, without query, parameters or blanks")]
    Character(char),
    /// Braces that are not a whole segment, or another router's way to write a template.
    #[error("`{0}` is not a template: write {{name}} as a whole segment, or use a prefix for all that follows")]
    Template(String),
    /// A segment beyond the bound.
    #[error("a segment must not be longer than {MAX_LITERAL} bytes")]
    LongSegment,
    /// More segments than the bound.
    #[error("a path must not have more than {MAX_SEGMENTS} segments")]
    TooDeep,
    /// A method that no request can have.
    #[error("`{0}` is not a method: write it in upper case, as in GET")]
    Method(String),
    /// The same path as an earlier rule's, for some of the same methods.
    #[error("an earlier rule matches the same path and method")]
    Duplicate {
        /// The index of that rule.
        other: usize,
    },
    /// The same path, for some of the same methods, as a rule of different access, once the aliases are applied.
    #[error("with the path aliases, another rule matches the same path and method and says something else")]
    DuplicateByAlias {
        /// The index of that rule.
        other: usize,
    },
    /// An alias that is the root or holds a template.
    #[error("a path alias must have at least one segment, and no templates")]
    Alias,
}

/// Counts the look-ups of a match, which must not grow with the number of rules.
#[cfg(not(test))]
fn count_probe() {}

#[cfg(test)]
use tests::count_probe;

#[cfg(test)]
mod tests;
