//! What goes on at once, counted: connections, requests, each tenant's requests. What comes on top is refused by whoever asks.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use licensing::tenant::TenantId;
use parking_lot::Mutex;

/// Into how many parts the tenants are divided, so that the threads that count them seldom meet.
const SHARDS: usize = 32;

/// The counts of one process.
#[derive(Default)]
pub(crate) struct Load {
    connections: AtomicUsize,
    requests: AtomicUsize,
    tunnels: AtomicUsize,
    /// Requests by tenant; those without one count as one tenant's. Whoever has none under way is not listed, so there are
    /// never more entries than requests.
    tenants: [Mutex<HashMap<Option<TenantId>, u32>>; SHARDS],
}

/// What there was at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Open connections, those that became WebSockets included.
    pub(crate) connections: usize,
    /// Requests that are being served.
    pub(crate) requests: usize,
    /// Requests that have become tunnels to the upstream, such as WebSockets.
    pub(crate) tunnels: usize,
}

/// One connection, counted for as long as this lives.
pub(crate) struct Connection(Arc<Load>);

/// One request, counted for as long as this lives, or until it is refused.
pub(crate) struct Request {
    load: Arc<Load>,
    counted: Counted,
    /// Whose it is counted as.
    tenant: Option<Option<TenantId>>,
}

/// Among what a request is counted.
#[derive(Clone, Copy, PartialEq)]
enum Counted {
    Nowhere,
    Requests,
    Tunnels,
}

impl Load {
    /// One more connection; none if there are `most` already.
    pub(crate) fn connect(self: &Arc<Self>, most: u32) -> Option<Connection> {
        take(&self.connections, most).then(|| Connection(Arc::clone(self)))
    }

    /// A request that has arrived and is not counted yet.
    pub(crate) fn request(self: &Arc<Self>) -> Request {
        Request { load: Arc::clone(self), counted: Counted::Nowhere, tenant: None }
    }

    /// What there is now.
    pub(crate) fn counts(&self) -> Counts {
        let [connections, requests, tunnels] =
            [&self.connections, &self.requests, &self.tunnels].map(|count| count.load(Ordering::Acquire));
        Counts { connections, requests, tunnels }
    }

    fn shard(&self, tenant: Option<TenantId>) -> &Mutex<HashMap<Option<TenantId>, u32>> {
        // A tenant's id may be any that a client says, but all that it could choose here is with whom it shares a lock.
        let low = tenant.map_or(0, |tenant| usize::from(tenant.as_uuid().as_bytes()[15]));
        &self.tenants[low % SHARDS]
    }
}

/// Whether `count` was below `most`, and is one more now.
fn take(count: &AtomicUsize, most: u32) -> bool {
    let fits = count.fetch_add(1, Ordering::AcqRel) < usize::try_from(most).unwrap_or(usize::MAX);
    if !fits {
        count.fetch_sub(1, Ordering::AcqRel);
    }
    fits
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Request {
    /// Whether it may be served beside those that are; it counts from now on if so. There may be `most`.
    pub(crate) fn enter(&mut self, most: u32) -> bool {
        let fits = take(&self.load.requests, most);
        if fits {
            self.counted = Counted::Requests;
        }
        fits
    }

    /// Whether it may be served beside its tenant's other requests, of which there may be `most`; it is no longer counted
    /// if not. `None` is no tenant.
    pub(crate) fn enter_as(&mut self, tenant: Option<TenantId>, most: u32) -> bool {
        let fits = {
            let mut tenants = self.load.shard(tenant).lock();
            let count = tenants.entry(tenant).or_default();
            let fits = *count < most;
            *count += u32::from(fits);
            fits
        };
        if fits {
            self.tenant = Some(tenant);
        } else {
            self.leave();
        }
        fits
    }

    /// It is a tunnel from now on: that takes a connection, and not the room of a request.
    pub(crate) fn becomes_tunnel(&mut self) {
        self.load.tunnels.fetch_add(1, Ordering::AcqRel);
        self.leave();
        self.counted = Counted::Tunnels;
    }

    fn leave(&mut self) {
        if let Some(tenant) = self.tenant.take() {
            let mut tenants = self.load.shard(tenant).lock();
            if let Some(count) = tenants.get_mut(&tenant) {
                *count -= 1;
                if *count == 0 {
                    tenants.remove(&tenant);
                }
            }
        }
        match std::mem::replace(&mut self.counted, Counted::Nowhere) {
            Counted::Nowhere => {}
            Counted::Requests => drop(self.load.requests.fetch_sub(1, Ordering::AcqRel)),
            Counted::Tunnels => drop(self.load.tunnels.fetch_sub(1, Ordering::AcqRel)),
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(n: u128) -> Option<TenantId> {
        Some(TenantId::new(uuid::Uuid::from_u128(n)))
    }

    #[test]
    fn what_is_refused_is_not_counted_and_what_ends_makes_room() {
        let load = Arc::new(Load::default());
        let (first, second) = (load.connect(2), load.connect(2));
        assert!(first.is_some() && second.is_some() && load.connect(2).is_none());
        drop(first);
        let third = load.connect(2);
        assert!(third.is_some() && load.counts().connections == 2);
        drop((second, third));

        let (mut one, mut two) = (load.request(), load.request());
        assert!(one.enter(1) && !two.enter(1));
        assert_eq!(load.counts().requests, 1);
        drop(two);
        assert_eq!(load.counts().requests, 1, "one that was refused gives nothing back");
        drop(one);
        assert_eq!(load.counts(), Counts { connections: 0, requests: 0, tunnels: 0 });
    }

    #[test]
    fn no_tenant_takes_what_is_another_s_and_none_is_one() {
        let load = Arc::new(Load::default());
        // These share a lock.
        let tenants = [tenant(1), tenant(1 + SHARDS as u128), None];
        let mut held = Vec::new();
        for tenant in tenants {
            for n in 0..3 {
                let mut request = load.request();
                assert!(request.enter(100));
                assert_eq!(request.enter_as(tenant, 2), n < 2, "{tenant:?}");
                held.push(request);
            }
        }
        assert_eq!(load.counts().requests, 6, "those over a tenant's share count no longer");
        held.remove(0);
        let mut request = load.request();
        assert!(request.enter(100) && request.enter_as(tenants[0], 2));
        held.push(request);
        drop(held);
        assert_eq!(load.counts().requests, 0);
        assert!(load.tenants.iter().all(|shard| shard.lock().is_empty()), "nobody is listed who has nothing under way");
    }

    #[test]
    fn a_tunnel_makes_room() {
        let load = Arc::new(Load::default());
        let mut tunnel = load.request();
        assert!(tunnel.enter(1) && tunnel.enter_as(None, 1));
        tunnel.becomes_tunnel();
        assert_eq!(load.counts(), Counts { connections: 0, requests: 0, tunnels: 1 });
        let mut request = load.request();
        assert!(request.enter(1) && request.enter_as(None, 1));
        drop((tunnel, request));
        assert_eq!(load.counts(), Counts { connections: 0, requests: 0, tunnels: 0 });
    }
}
