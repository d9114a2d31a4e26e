use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::secret::Secret;

const TENANT: TenantId = TenantId::new(Uuid::from_u128(7));

/// What a played server does and was asked.
#[derive(Default)]
struct State {
    in_recovery: bool,
    replayed: Option<&'static str>,
    /// Of the one licence it has.
    revision: i64,
    /// It closes each connection at once.
    is_down: bool,
    /// It never answers when it is asked for licences.
    hangs: bool,
    connections: usize,
    asked: Vec<String>,
}

/// A server that speaks just enough of the protocol.
struct Played {
    url: Secret,
    state: Arc<Mutex<State>>,
}

impl Played {
    async fn start(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                state.lock().connections += 1;
                tokio::spawn(async move { drop(play(connection, &state).await) });
            }
        });
        Self { url: Secret::new(format!("postgres://app@127.0.0.1:{port}/main?sslmode=disable")), state }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().asked)
    }
}

async fn play(mut connection: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let length = connection.read_u32().await?;
    connection.read_exact(&mut vec![0; length as usize - 4]).await?;
    connection.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await?;
    let mut statement = String::new();
    loop {
        let kind = connection.read_u8().await?;
        let mut body = vec![0; connection.read_u32().await? as usize - 4];
        connection.read_exact(&mut body).await?;
        let text = |body: &[u8]| String::from_utf8_lossy(body.split(|b| *b == 0).next().unwrap_or_default()).into();
        let mut answer = Vec::new();
        match kind {
            b'P' => statement = text(&body[1..]),
            b'Q' => {
                state.lock().asked.push(text(&body));
                message(&mut answer, b'C', b"DONE\0");
                message(&mut answer, b'Z', b"I");
            }
            b'S' => {
                let mut state = state.lock();
                state.asked.push(statement.clone());
                rows(&mut answer, &statement, &state);
            }
            _ => {}
        }
        if state.lock().is_down {
            return Ok(());
        }
        if kind == b'S' && statement == LOAD && state.lock().hangs {
            std::future::pending::<()>().await;
        }
        connection.write_all(&answer).await?;
    }
}

fn message(to: &mut Vec<u8>, kind: u8, body: &[u8]) {
    to.push(kind);
    to.extend_from_slice(&u32::try_from(body.len() + 4).expect("short").to_be_bytes());
    to.extend_from_slice(body);
}

/// One row, whatever is asked.
fn rows(to: &mut Vec<u8>, statement: &str, state: &State) {
    let text = |text: &str| (Type::TEXT, Some(text.as_bytes().to_vec()));
    let int = |int: i32| (Type::INT4, Some(int.to_be_bytes().to_vec()));
    let time = |micros: i64| (Type::TIMESTAMP, Some(micros.to_be_bytes().to_vec()));
    let position = (Type::TEXT, state.replayed.map(|position| position.as_bytes().to_vec()));
    let in_recovery = (Type::BOOL, Some(vec![u8::from(state.in_recovery)]));
    let columns = match statement {
        LOAD => vec![
            (Type::UUID, Some(TENANT.as_uuid().as_bytes().to_vec())),
            text("starter"),
            text("{}"),
            int(2),
            text("{}"),
            int(2),
            text("{}"),
            int(2),
            time(0),
            time(i64::MAX),
            (Type::BOOL, Some(vec![1])),
            (Type::INT8, Some(state.revision.to_be_bytes().to_vec())),
        ],
        REPLAYED => vec![in_recovery, position],
        PROBE_REPLICA => vec![in_recovery, position, int(1)],
        PRIMARY_POSITION => vec![text("16/B374D848"), int(0x74_D848)],
        _ => vec![int(1)],
    };
    let count = u16::try_from(columns.len()).expect("few").to_be_bytes();
    let (mut description, mut row) = (count.to_vec(), count.to_vec());
    for (ty, value) in columns {
        description.extend_from_slice(b"column\0\0\0\0\0\0\0");
        description.extend_from_slice(&ty.oid().to_be_bytes());
        description.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
        row.extend_from_slice(&value.as_ref().map_or(-1, |v| i32::try_from(v.len()).expect("short")).to_be_bytes());
        row.extend_from_slice(&value.unwrap_or_default());
    }
    message(to, b'1', b"");
    message(to, b'2', b"");
    message(to, b't', &[0, 0]);
    message(to, b'T', &description);
    message(to, b'D', &row);
    message(to, b'C', b"SELECT 1\0");
    message(to, b'Z', b"I");
}

fn options() -> PoolOptions {
    let seconds = Duration::from_secs;
    PoolOptions { max_connections: 2, idle_timeout: seconds(60), timeout: seconds(4) }
}

/// A replica that has revision 1, and its primary, which has revision 2.
struct Pair {
    replica: Played,
    primary: Played,
    postgres: Postgres,
    lagging: IntCounter,
}

impl Pair {
    async fn start() -> Self {
        let replica = Played::start(State { in_recovery: true, revision: 1, ..State::default() }).await;
        let primary = Played::start(State { revision: 2, ..State::default() }).await;
        let lagging = IntCounter::new("lagging", "lagging").expect("a counter");
        let postgres =
            Postgres::new(&replica.url, Some(&primary.url), options(), lagging.clone()).expect("two good URLs");
        let pair = Self { replica, primary, postgres, lagging };
        pair.told(Instant::now() + Duration::from_hours(1));
        pair
    }

    /// When the position was told: until shortly after that nobody asks for it.
    fn told(&self, at: Instant) {
        *self.postgres.primary.as_ref().expect("a pair").known_at.lock() = Some(at);
    }
}

/// The revision that is found.
async fn revision(postgres: &Postgres) -> Result<i64, String> {
    let answers = postgres.load(&[TENANT]).await.map_err(|error| error.to_string())?;
    assert_eq!(answers.len(), 1);
    Ok(answers[0].as_ref().expect("readable").as_ref().expect("a licence").revision)
}

#[tokio::test]
async fn a_replicas_rows_count_if_it_has_replayed_what_is_known() {
    for (in_recovery, replayed, required, primary_is_up, expected) in [
        // Nothing is known of the primary.
        (true, Some("0/10"), 0, true, Ok(1)),
        (true, Some("0/10"), 0x10, true, Ok(1)),
        (true, Some("0/10"), 0x11, true, Ok(2)),
        (true, Some("1/0"), 0xFFFF_FFFF, true, Ok(1)),
        (true, None, 0, true, Ok(2)),
        (true, Some("nonsense"), 0, true, Ok(2)),
        // No standby at all.
        (false, None, 0x11, true, Ok(1)),
        (false, Some("0/10"), 0x11, false, Ok(1)),
        (true, Some("0/10"), 0x10, false, Ok(1)),
        (true, Some("0/10"), 0x11, false, Err(())),
        (true, None, 0x11, false, Err(())),
        (true, None, 0, false, Ok(1)),
    ] {
        let case = format!("{in_recovery} {replayed:?} {required} {primary_is_up}");
        let pair = Pair::start().await;
        {
            let mut replica = pair.replica.state.lock();
            (replica.in_recovery, replica.replayed) = (in_recovery, replayed);
        }
        pair.primary.state.lock().is_down = !primary_is_up;
        pair.postgres.require(Position::new(required));
        pair.postgres.require(Position::new(required / 2));
        let found = revision(&pair.postgres).await;
        assert_eq!(pair.postgres.probe().await.is_ok(), expected.is_ok(), "{case}: a probe finds out the same");
        match expected {
            Ok(revision) => assert_eq!(found, Ok(revision), "{case}"),
            Err(()) => {
                let error = found.expect_err(&case);
                let sentence = "the read replica lags behind the primary and the primary does not answer";
                assert!(error.contains(sentence), "{case}: {error}");
            }
        }
        let asked_primary = !pair.primary.asked().is_empty();
        let lags = pair.lagging.get() == 1;
        assert_eq!(lags, expected != Ok(1) || (replayed.is_none() && !primary_is_up), "{case}");
        assert!(!asked_primary || lags, "{case}");
    }
}

#[tokio::test]
async fn what_is_required_grows_until_a_new_timeline() {
    let pair = Pair::start().await;
    pair.replica.state.lock().replayed = Some("0/20");
    for (act, expected) in [
        (None, 1),
        (Some((false, 0x30)), 2),
        (Some((false, 0x10)), 2),
        (Some((true, 0x20)), 1),
        (Some((false, 0x21)), 2),
    ] {
        match act {
            Some((true, position)) => pair.postgres.restart_from(Position::new(position)),
            Some((false, position)) => pair.postgres.require(Position::new(position)),
            None => {}
        }
        assert_eq!(revision(&pair.postgres).await, Ok(expected), "{act:?}");
    }
}

/// Without a change feed nobody tells where the primary is; then it is asked, every other second.
#[tokio::test]
async fn where_nobody_tells_the_position_it_is_asked_for() {
    let pair = Pair::start().await;
    pair.replica.state.lock().replayed = Some("0/20");
    assert_eq!(revision(&pair.postgres).await, Ok(1), "as far as was told");
    pair.told(Instant::now().checked_sub(Duration::from_secs(3)).expect("the machine is not that young"));
    for _ in 0..5 {
        assert_eq!(revision(&pair.postgres).await, Ok(2), "the replica is behind 16/B374D848");
    }
    let asked = pair.primary.asked();
    assert_eq!(asked.iter().filter(|statement| *statement == PRIMARY_POSITION).count(), 1);
    pair.replica.state.lock().replayed = Some("16/B374D848");
    assert_eq!(revision(&pair.postgres).await, Ok(1));
}

/// The position is asked for before the rows, in one transaction; without a replica there is one statement, as ever.
#[tokio::test]
async fn the_position_comes_before_the_rows() {
    let pair = Pair::start().await;
    pair.replica.state.lock().replayed = Some("0/20");
    assert_eq!(revision(&pair.postgres).await, Ok(1));
    let begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY";
    assert_eq!(pair.replica.asked(), [begin, REPLAYED, LOAD, "COMMIT"]);
    assert!(pair.primary.asked().is_empty());

    let lagging = IntCounter::new("lagging", "lagging").expect("a counter");
    let alone = Postgres::new(&pair.replica.url, None, options(), lagging).expect("a good URL");
    alone.require(Position::new(u64::MAX));
    assert_eq!(revision(&alone).await, Ok(1));
    assert_eq!(pair.replica.asked(), [LOAD]);
}

/// A replica that is down costs no look-up its time: after the first the primary is asked at once.
#[tokio::test]
async fn a_replica_that_is_down_is_passed_over() {
    let pair = Pair::start().await;
    pair.replica.state.lock().is_down = true;
    assert_eq!(revision(&pair.postgres).await, Ok(2));
    let breaker = &pair.postgres.primary.as_ref().expect("a pair").replica;
    breaker.settled().await;
    assert!(!breaker.allows());
    let asked = pair.replica.state.lock().connections;
    for _ in 0..5 {
        assert_eq!(revision(&pair.postgres).await, Ok(2));
    }
    assert!(pair.replica.state.lock().connections <= asked + 1, "but for a probe nobody asks it");
    assert_eq!(pair.lagging.get(), 0, "it is not behind, it is down");
    pair.replica.state.lock().replayed = Some("0/20");
    pair.replica.state.lock().is_down = false;
    tokio::time::timeout(Duration::from_secs(20), async {
        while revision(&pair.postgres).await != Ok(1) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the replica is asked again");
}

/// Look-ups that take every connection and never end are no outage.
#[tokio::test]
async fn an_exhausted_pool_is_no_outage() {
    let played = Played::start(State { hangs: true, ..State::default() }).await;
    let lagging = IntCounter::new("lagging", "lagging").expect("a counter");
    let options = PoolOptions { timeout: Duration::from_millis(500), ..options() };
    let postgres = Postgres::new(&played.url, None, options, lagging).expect("a good URL");
    let load = || async { postgres.load(&[TENANT]).await.expect_err("no answer") };
    let probes = async {
        for _ in 0..20 {
            postgres.probe().await.expect("the server answers");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (first, second, third, ()) = tokio::join!(load(), load(), load(), probes);
    for error in [first, second, third] {
        assert!(matches!(error, StoreError::Late { .. }), "{error}");
    }
    let connections = played.state.lock().connections;
    assert!(
        (3..=4).contains(&connections),
        "{connections}: the pool's two, one for all probes, and one for who came last"
    );
}
