//! A batch of usage on its way into Postgres: one transaction, sent at once, that does nothing a second time.

use async_trait::async_trait;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row};
use uuid::Uuid;

use super::postgres_denials::Denials;
use super::postgres_feed::thresholds_channel;
use super::postgres_order::{hold_in_common, locks_of};
use super::postgres_usage::{Key, amount, number, standing};
use super::transactions::{Interrupted, Work};
use super::usage::{Batch, Count, Crossing, Posted, Settlement};

/// Fails if it is there. Whoever posts the same batch meanwhile waits here.
const NOTE: &str = "INSERT INTO usage_batches (id) VALUES ($1)";

/// Whose licence is gone is left out, and added up. The rows are written in the order of their ids, as everybody writes them,
/// and those of one id are added up first, since one statement may not write a row twice.
///
/// `usage_count` is a public INTEGER: what would not fit into the day's row gets one of its own, so that sums stay right.
pub(super) const COUNT: &str = "WITH list AS ( \
       SELECT id, tenant_id, feature, day::date AS day, sum(amount)::bigint AS amount \
         FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::int8[]) \
           AS list (id, tenant_id, feature, day, amount) \
        GROUP BY 1, 2, 3, 4), \
     licensed AS ( \
       SELECT * FROM list WHERE EXISTS (SELECT FROM tenant_licenses AS l WHERE l.tenant_id = list.tenant_id)), \
     counted AS ( \
       INSERT INTO feature_usage AS u (id, tenant_id, feature_name, usage_count, usage_date) \
       SELECT id, tenant_id, feature, amount::integer, day FROM licensed WHERE amount <= 2147483647 ORDER BY id \
       ON CONFLICT (id) DO UPDATE SET usage_count = coalesce(u.usage_count, 0) + EXCLUDED.usage_count \
        WHERE coalesce(u.usage_count, 0)::bigint + EXCLUDED.usage_count <= 2147483647 \
       RETURNING id), \
     beside AS ( \
       INSERT INTO feature_usage (id, tenant_id, feature_name, usage_count, usage_date) \
       SELECT gen_random_uuid(), tenant_id, feature, least(amount - part * 2147483647, 2147483647)::integer, day \
         FROM licensed CROSS JOIN LATERAL generate_series(0, (amount - 1) / 2147483647) AS parts (part) \
        WHERE id NOT IN (SELECT id FROM counted)) \
     SELECT (coalesce((SELECT sum(amount) FROM list), 0) - coalesce((SELECT sum(amount) FROM licensed), 0))::bigint";

/// Each window that is settled, or that usage without a lease falls into, in the order of their keys, as everybody locks them;
/// `before` is what was announced before, and thresholds passed since are told to every replica ($13: the batch). How much is used is worked out from the row as it is once it is locked. OFFSET 0 has
/// the windows of each line looked up by themselves, by the index, however few the planner takes them to be.
pub(super) const SETTLE: &str = concat!(
    "WITH settled AS ( \
       SELECT tenant_id, feature, kind, start_date::date AS start_date, max(allowed) AS allowed, \
              sum(spent) AS spent, sum(returned) AS returned, array_agg(place) AS places \
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::int8[], $6::int8[], $7::int8[]) WITH ORDINALITY \
           AS list (tenant_id, feature, kind, start_date, allowed, spent, returned, place) \
        GROUP BY 1, 2, 3, 4), \
     unleased AS ( \
       SELECT tenant_id, feature, kind, start_date, sum(amount) AS amount \
         FROM unnest($8::uuid[], $9::text[], $10::text[], $11::int8[]) AS list (tenant_id, feature, day, amount) \
        CROSS JOIN LATERAL ( \
           SELECT window_kind, start_date FROM usage_windows AS w \
            WHERE w.tenant_id = list.tenant_id AND w.feature = list.feature \
              AND w.end_date > list.day::date AND w.start_date <= list.day::date OFFSET 0) AS found (kind, start_date) \
        GROUP BY 1, 2, 3, 4), \
     due AS ( \
       SELECT tenant_id, feature, kind, start_date, allowed, places, coalesce(spent, 0) + coalesce(amount, 0) AS consumed, \
              coalesce(spent, 0) + coalesce(returned, 0) AS released \
         FROM settled FULL JOIN unleased USING (tenant_id, feature, kind, start_date)), \
     locked AS ( \
       SELECT due.*, w.announced FROM due JOIN usage_windows AS w ON w.tenant_id = due.tenant_id \
          AND w.feature = due.feature AND w.window_kind = due.kind AND w.start_date = due.start_date \
        ORDER BY w.tenant_id, w.feature, w.window_kind, w.start_date FOR UPDATE OF w), \
     written AS ( \
       UPDATE usage_windows AS w \
          SET used = w.used + consumed::bigint, reserved = greatest(w.reserved - released::bigint, 0), \
              announced = CASE WHEN allowed > 0 THEN coalesce( \
                (SELECT max(percent) FROM unnest($12::int4[]) AS list (percent) \
                  WHERE (w.used + consumed) * 100 >= allowed::numeric * percent), 0) ELSE w.announced END \
         FROM locked WHERE w.tenant_id = locked.tenant_id AND w.feature = locked.feature \
          AND w.window_kind = locked.kind AND w.start_date = locked.start_date \
       RETURNING places, w.tenant_id, w.feature, allowed, end_date, used, reserved, \
                 locked.announced AS before, w.announced AS after) \
     SELECT places, used, reserved, before, after, \
            (SELECT count(pg_notify('",
    thresholds_channel!(),
    "', json_build_object('batch', $13::uuid, 'tenant', tenant_id, 'feature', feature, 'percent', percent, \
                          'used', used, 'limit', allowed, 'resetsAt', \
                          CASE WHEN isfinite(end_date) THEN to_char(end_date, 'YYYY-MM-DD\"T00:00:00Z\"') END)::text)) \
               FROM unnest($12::int4[]) AS list (percent) WHERE percent > before AND percent <= after) \
       FROM written WHERE places IS NOT NULL"
);

#[async_trait]
impl Work for Batch {
    /// None: nothing is written, since the tables of licences and their use are not there.
    type Done = Option<Posted>;

    async fn work(&self, client: &Client) -> Result<Option<Posted>, Interrupted> {
        let counts = Counts::of(&self.counts);
        let (settlements, unleased) = (Settlements::of(&self.settlements), Unleased::of(&self.counts));
        let denials = Denials::of(self.denials.iter().filter(|denial| !denial.shadow));
        let shadows = Denials::of(self.denials.iter().filter(|denial| denial.shadow));
        let denied = self.denials.iter().filter(|denial| !denial.shadow).map(|denial| denial.tenant);
        let used = self.counts.iter().filter(|count| count.unleased > 0).map(|count| count.tenant);
        let locks = locks_of(denied.chain(used));
        let thresholds: Vec<i32> = self.thresholds.iter().map(|percent| i32::from(*percent)).collect();
        let id: [(&(dyn ToSql + Sync), Type); 1] = [(&self.id, Type::UUID)];
        // The public table first: others may hold its rows for long, and nobody should wait for us meanwhile.
        let (noted, without_license, held, settled, denied, shadowed) = tokio::join!(
            biased;
            client.execute_typed(NOTE, &id),
            counts.add(client),
            hold_in_common(client, &locks),
            settle(client, self.id, &settlements, &unleased, &thresholds),
            denials.add(client),
            shadows.add_shadow(client),
        );
        match noted {
            // Once it has failed, nothing of what follows is done.
            Err(error) if is_there(&error) => {
                return Ok(Some(Posted { standings: vec![None; self.settlements.len()], ..Posted::default() }));
            }
            noted => noted?,
        };
        let without_license = match without_license {
            // All that follows has failed with it, and COMMIT undoes the rest.
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => return Ok(None),
            without_license => without_license?,
        };
        held?;
        let rows = settled?;
        denied?;
        shadowed?;
        let mut posted = Posted { without_license, standings: vec![None; self.settlements.len()], ..Posted::default() };
        for row in &rows {
            self.read_settled(row, &mut posted)?;
        }
        Ok(Some(posted))
    }
}

impl Batch {
    /// Read a row of [`SETTLE`].
    fn read_settled(&self, row: &Row, posted: &mut Posted) -> Result<(), Error> {
        let standing = standing(row, 1)?;
        let (before, after): (i32, i32) = (row.try_get(3)?, row.try_get(4)?);
        let places: Vec<i64> = row.try_get(0)?;
        let places = places.iter().filter_map(|place| usize::try_from(place - 1).ok());
        for (nth, place) in places.enumerate() {
            let (Some(settlement), Some(slot)) = (self.settlements.get(place), posted.standings.get_mut(place)) else {
                continue;
            };
            *slot = Some(standing);
            let crossed = self
                .thresholds
                .iter()
                .filter(|percent| nth == 0 && (before + 1..=after).contains(&i32::from(**percent)));
            posted.crossings.extend(crossed.map(|percent| Crossing {
                key: settlement.key.clone(),
                percent: *percent,
                used: standing.used,
                limit: settlement.limit,
            }));
        }
        Ok(())
    }
}

/// Whether the batch was posted before.
fn is_there(error: &Error) -> bool {
    error
        .as_db_error()
        .is_some_and(|error| *error.code() == SqlState::UNIQUE_VIOLATION && error.table() == Some("usage_batches"))
}

/// What was consumed, as columns.
#[derive(Default)]
struct Counts<'a> {
    ids: Vec<Uuid>,
    tenants: Vec<Uuid>,
    features: Vec<&'a str>,
    days: Vec<String>,
    amounts: Vec<i64>,
}

impl<'a> Counts<'a> {
    fn of(counts: &'a [Count]) -> Self {
        let mut columns = Self::default();
        for count in counts.iter().filter(|count| count.count > 0) {
            let day = count.day.to_string();
            columns.ids.push(Uuid::new_v5(count.tenant.as_uuid(), format!("{}/{day}", count.feature).as_bytes()));
            columns.tenants.push(*count.tenant.as_uuid());
            columns.features.push(&count.feature);
            columns.days.push(day);
            columns.amounts.push(amount(count.count));
        }
        columns
    }

    /// Add them to what there is; answers how much was left out for want of a licence.
    async fn add(&self, client: &Client) -> Result<u64, Error> {
        if self.ids.is_empty() {
            return Ok(0);
        }
        let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
            (&self.ids, Type::UUID_ARRAY),
            (&self.tenants, Type::UUID_ARRAY),
            (&self.features, Type::TEXT_ARRAY),
            (&self.days, Type::TEXT_ARRAY),
            (&self.amounts, Type::INT8_ARRAY),
        ];
        number(&client.query_typed_one(COUNT, &parameters).await?, 0)
    }
}

/// What became of leases, as columns.
#[derive(Default)]
struct Settlements<'a> {
    tenants: Vec<Uuid>,
    features: Vec<&'a str>,
    kinds: Vec<&'static str>,
    starts: Vec<String>,
    limits: Vec<i64>,
    spent: Vec<i64>,
    returned: Vec<i64>,
}

impl<'a> Settlements<'a> {
    fn of(settlements: &'a [Settlement]) -> Self {
        let mut columns = Self::default();
        for settlement in settlements {
            let Key { tenant, feature, kind, start, .. } = Key::of(&settlement.key);
            columns.tenants.push(*tenant.as_uuid());
            columns.features.push(feature);
            columns.kinds.push(kind);
            columns.starts.push(start);
            columns.limits.push(i64::try_from(settlement.limit).unwrap_or(i64::MAX));
            columns.spent.push(amount(settlement.spent));
            columns.returned.push(amount(settlement.returned));
        }
        columns
    }
}

/// What was consumed without a lease, as columns.
#[derive(Default)]
struct Unleased<'a> {
    tenants: Vec<Uuid>,
    features: Vec<&'a str>,
    days: Vec<String>,
    amounts: Vec<i64>,
}

impl<'a> Unleased<'a> {
    fn of(counts: &'a [Count]) -> Self {
        let mut columns = Self::default();
        for count in counts.iter().filter(|count| count.unleased > 0) {
            columns.tenants.push(*count.tenant.as_uuid());
            columns.features.push(&count.feature);
            columns.days.push(count.day.to_string());
            columns.amounts.push(amount(count.unleased));
        }
        columns
    }
}

/// Settle windows; answers the rows of [`SETTLE`].
async fn settle(
    client: &Client,
    batch: Uuid,
    settlements: &Settlements<'_>,
    unleased: &Unleased<'_>,
    thresholds: &[i32],
) -> Result<Vec<Row>, Error> {
    if settlements.tenants.is_empty() && unleased.tenants.is_empty() {
        return Ok(Vec::new());
    }
    let parameters: [(&(dyn ToSql + Sync), Type); 13] = [
        (&settlements.tenants, Type::UUID_ARRAY),
        (&settlements.features, Type::TEXT_ARRAY),
        (&settlements.kinds, Type::TEXT_ARRAY),
        (&settlements.starts, Type::TEXT_ARRAY),
        (&settlements.limits, Type::INT8_ARRAY),
        (&settlements.spent, Type::INT8_ARRAY),
        (&settlements.returned, Type::INT8_ARRAY),
        (&unleased.tenants, Type::UUID_ARRAY),
        (&unleased.features, Type::TEXT_ARRAY),
        (&unleased.days, Type::TEXT_ARRAY),
        (&unleased.amounts, Type::INT8_ARRAY),
        (&thresholds, Type::INT4_ARRAY),
        (&batch, Type::UUID),
    ];
    client.query_typed(SETTLE, &parameters).await
}
