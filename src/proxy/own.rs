//! Requests that the proxy serves itself: to the licence API, and those that become WebSockets.

use std::sync::Arc;

use http::header::{CONNECTION, EXPECT, IF_NONE_MATCH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderValue, Method, Version};
use licensing::answer::Failure;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

use super::handover::Handover;
use super::{Context, Proxy, Snapshot, respond};
use crate::api::handshake::{self, Mistake};
use crate::api::headers::is_json;
use crate::api::license::{Basis, Call, Reply, refuse};
use crate::api::offers;
use crate::api::paths::Endpoint;
use crate::api::updates::LicenseUpdates;
use crate::api::upgrade::Asked;
use crate::intake::{Facts, Via};
use crate::metrics::OpenSocket;

/// The methods of a licence, and of what is sold.
const ALLOW: &str = "GET, HEAD";

impl Proxy {
    /// Serve a request to a path of ours.
    pub(super) async fn serve_own(
        &self,
        session: &mut Session,
        context: &mut Context,
        endpoint: Endpoint,
    ) -> Result<bool> {
        context.answered = true;
        let request = session.req_header();
        if endpoint.websocket && (!endpoint.document || handshake::asks_for_websocket(&request.headers)) {
            return self.open_websocket(session, context).await;
        }
        if endpoint.upgrade {
            return self.upgrade(session, context).await;
        }
        if endpoint.click {
            return self.click(session, context).await;
        }
        if ![Method::GET, Method::HEAD].contains(&request.method) {
            self.say_failure(session, context, Failure::MethodNotAllowed { allow: ALLOW }).await?;
            return Ok(true);
        }
        let snapshot = &*context.snapshot;
        let call = call(session, context, snapshot)?;
        let reply = if endpoint.offers { offers::get(&call) } else { self.license_api.get(&call).await };
        self.reply(session, context, reply).await
    }

    /// Upgrade the tenant whose people ask for it.
    async fn upgrade(&self, session: &mut Session, context: &mut Context) -> Result<bool> {
        let snapshot = Arc::clone(&context.snapshot);
        let Some(settings) = &snapshot.upgrade else {
            return Error::e_explain(ErrorType::InternalError, "an upgrade that is not configured");
        };
        let refused = {
            let (call, facts) = (call(session, context, &snapshot)?, facts(context)?);
            let wrong = wrong_with(session.req_header(), facts, &snapshot);
            self.upgrade_api.admit(&call, facts.may_upgrade).err().or(wrong.map(|failure| call.fail(failure)))
        };
        let reply = match refused {
            Some(reply) => reply,
            None => {
                let body = read_body(session, &snapshot).await?;
                let (call, facts, request) =
                    (call(session, context, &snapshot)?, facts(context)?, session.req_header());
                let asked = Asked {
                    may_upgrade: facts.may_upgrade,
                    actor: snapshot.intake.actor(facts, &request.headers),
                    mode: settings.mode,
                    downgrade: settings.downgrade,
                    headers: &request.headers,
                    body: body.as_deref(),
                    call,
                };
                self.upgrade_api.upgrade(&asked).await
            }
        };
        self.reply(session, context, reply).await
    }

    /// Write down that somebody follows the way to an upgrade.
    async fn click(&self, session: &mut Session, context: &mut Context) -> Result<bool> {
        let snapshot = Arc::clone(&context.snapshot);
        let reply = match wrong_with(session.req_header(), facts(context)?, &snapshot) {
            Some(failure) => call(session, context, &snapshot)?.fail(failure),
            None => {
                let body = read_body(session, &snapshot).await?;
                self.clicks.told(&call(session, context, &snapshot)?, body.as_deref())
            }
        };
        self.reply(session, context, reply).await
    }

    /// Answer the opening handshake, and leave the rest to whoever takes the connection: see
    /// [`Connections`](super::Connections).
    async fn open_websocket(&self, session: &mut Session, context: &mut Context) -> Result<bool> {
        let request = session.req_header();
        let accept = match handshake::accept(&request.method, request.version, &request.headers) {
            Ok(accept) => accept,
            Err(mistake) => {
                let failure = match mistake {
                    // Over HTTP/2 there is no upgrade to ask for (RFC 9113 section 8.6).
                    Mistake::UpgradeRequired if request.version == Version::HTTP_11 => Failure::UpgradeRequired,
                    Mistake::UpgradeRequired | Mistake::Malformed => Failure::HandshakeMalformed,
                };
                self.say_failure(session, context, failure).await?;
                return Ok(true);
            }
        };
        let snapshot = &*context.snapshot;
        let facts = facts(context)?;
        if !may_act(facts, snapshot) {
            self.say_failure(session, context, Failure::OriginNotAllowed).await?;
            return Ok(true);
        }
        let call = call(session, context, snapshot)?;
        let opened = match call.tenant() {
            Ok(tenant) => {
                // Watched from before it is looked at, so that no change is missed.
                let watch = self.license_api.watch(tenant);
                self.license_api.held(tenant).await.map(|held| (watch, held)).map_err(|reason| refuse(&call, reason))
            }
            Err(reply) => Err(reply),
        };
        let (watch, (entry, layer)) = match opened {
            Ok(opened) => opened,
            Err(reply) => return self.reply(session, context, reply).await,
        };
        let mut head = ResponseHeader::build(101, Some(5))?;
        head.insert_header(UPGRADE, "websocket")?;
        head.insert_header(CONNECTION, "Upgrade")?;
        head.insert_header(SEC_WEBSOCKET_ACCEPT, accept)?;
        head.insert_header("X-Request-ID", context.request_id.clone())?;
        if let Some(subprotocol) = &facts.subprotocol {
            head.insert_header(SEC_WEBSOCKET_PROTOCOL, subprotocol.clone())?;
        }
        let updates = LicenseUpdates::new(self.license_api.clone(), self.snapshots.clone(), watch);
        let handover = Handover::new(updates, facts.expires, OpenSocket::new(&self.metrics));
        session.as_downstream_mut().write_response_header(Box::new(head)).await?;
        // A connection that is to be kept is given back by pingora.
        session.set_keepalive(Some(0));
        context.basis = Basis { reason: None, entry, layer };
        *context.handover.lock() = Some(handover);
        Ok(true)
    }

    async fn reply(&self, session: &mut Session, context: &mut Context, reply: Reply) -> Result<bool> {
        let Snapshot { cors, drain, .. } = &*context.snapshot;
        context.basis = reply.basis;
        respond::respond(session, reply.answer, cors, *drain).await?;
        Ok(true)
    }
}

/// What is wrong with a request that changes something, apart from who sends it.
fn wrong_with(request: &RequestHeader, facts: &Facts, snapshot: &Snapshot) -> Option<Failure> {
    if request.method != Method::POST {
        return Some(Failure::MethodNotAllowed { allow: "POST" });
    }
    // Headers of the gateway's own can't be had by a page; cookies are sent for any, and any asks what host it likes.
    if matches!(facts.via, Some(Via::Cookie | Via::Host)) && !may_act(facts, snapshot) {
        return Some(Failure::OriginNotAllowed);
    }
    (!is_json(&request.headers)).then_some(Failure::UnsupportedMediaType)
}

/// A request's body; none if it is larger than any that we take.
async fn read_body(session: &mut Session, snapshot: &Snapshot) -> Result<Option<Vec<u8>>> {
    const MOST: usize = 16 * 1024;
    if awaits_continue(session.req_header()) {
        // What is answered before the body is read ends the connection, but for this.
        session.set_close_on_response_before_downstream_finish(false);
        session.as_downstream_mut().write_continue_response().await?;
        session.set_close_on_response_before_downstream_finish(true);
    }
    let mut body = Vec::new();
    let reading = async {
        while let Some(chunk) = session.as_downstream_mut().read_request_body().await? {
            body.extend_from_slice(&chunk);
            if body.len() > MOST {
                return Ok(false);
            }
        }
        Ok(true)
    };
    let whole = match tokio::time::timeout(snapshot.drain.time, reading).await {
        Ok(whole) => whole,
        Err(_) => Error::e_explain(ErrorType::ReadTimedout, "the body of a request to the licence API"),
    };
    // Whatever is wrong with it is the client's doing.
    whole.map(|whole: bool| whole.then_some(body)).map_err(|error: Box<Error>| error.into_down())
}

/// Whether the client sends no body before it is told to (RFC 9110 section 10.1.1). What is forwarded, the upstream tells.
fn awaits_continue(request: &RequestHeader) -> bool {
    let expects = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    request.version == Version::HTTP_11 && request.headers.get_all(EXPECT).iter().any(expects)
}

/// Whether this may be the work of the client itself and not of a page that its user happened to visit: browsers open
/// WebSockets to any host for any page, with the host's cookies, and say where that came from.
fn may_act(facts: &Facts, snapshot: &Snapshot) -> bool {
    match &facts.origin {
        Some(origin) => snapshot.cors.may_act(origin.as_bytes(), facts.host.as_ref().map(|host| host.as_bytes())),
        None => facts.via != Some(Via::Cookie),
    }
}

fn call<'a>(session: &Session, context: &'a Context, snapshot: &'a Snapshot) -> Result<Call<'a>> {
    Ok(Call {
        identity: facts(context)?.identity,
        snapshot,
        none_match: session.req_header().headers.get_all(IF_NONE_MATCH).iter().cloned().collect(),
        vary: &snapshot.vary,
        request_id: context.request_id.to_str().unwrap_or_default(),
        format: respond::format_for(session),
    })
}

fn facts(context: &Context) -> Result<&Facts> {
    let unread = || Error::explain(ErrorType::InternalError, "a request that was not read");
    context.facts.as_ref().ok_or_else(unread)
}
