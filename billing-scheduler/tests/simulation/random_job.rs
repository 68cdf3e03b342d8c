//! A job with random behaviour.

use std::{future::pending, sync::Arc};

use async_trait::async_trait;
use billing_scheduler::{Job, JobContext, JobError, Outcome};
use uuid::Uuid;

use crate::{
    daemon::MAX_ATTEMPTS,
    event_loop::{Life, World},
    random::Random,
};

/// The job in one process.
pub(crate) struct RandomJob {
    pub(crate) world: Arc<World>,
    pub(crate) life: Life,
}

#[async_trait]
impl Job for RandomJob {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        let Self { world, life } = self;
        let job = ctx.occurrence.job.as_str();
        let mut random = Random::new(world.seed, (life, &ctx.occurrence, ctx.attempt, ctx.fencing_token));
        let _active = ActiveRun::begin(world, *life, ctx);
        world.log(format_args!(
            "{} runs {}, attempt {}, fencing token {}",
            life.daemon, ctx.occurrence, ctx.attempt, ctx.fencing_token
        ));
        if let Some(reason) = ctx.stop_requested() {
            world.wrong(format!("a run of `{job}` started although {reason}"));
        }
        if ctx.attempt > MAX_ATTEMPTS {
            world.wrong(format!("attempt {} of {}", ctx.attempt, ctx.occurrence));
        }
        let began = world.now();
        let is_seen = job != "own" && random.below(20) == 0;
        if is_seen {
            world.plan_to_cancel(ctx, random.time(0, 500));
        }
        let part = if world.is_quiet() { 0 } else { random.below(100) };
        let (steps, listens) = match part {
            _ if is_seen => (5, true),
            0..70 => (1 + random.below(3), true),
            70..85 => (5 + random.below(20), true),
            85..95 => (5 + random.below(20), false),
            95..98 => {
                ctx.stopped().await;
                if ctx.stop_requested().is_none() {
                    world.wrong(format!("a run of `{job}` was requested to stop without a reason"));
                }
                return Ok(Outcome::Interrupted { items: 0 });
            }
            _ => pending().await,
        };
        for _ in 0..steps {
            ctx.clock().sleep(random.time(50, 1_500)).await;
            world.check_alone(*life, ctx);
            world.check_cancelled_run_stops(ctx, began);
            if listens && ctx.stop_requested().is_some() {
                return Ok(Outcome::Interrupted { items: 0 });
            }
        }
        let result = if world.is_quiet() { 0 } else { random.below(10) };
        match result {
            0..7 => Ok(Outcome::done(1)),
            7 | 8 => Err(JobError::retry("boom")),
            _ => Err(JobError::fatal("never")),
        }
    }
}

/// Marks a run as active until it ends or is aborted.
struct ActiveRun {
    world: Arc<World>,
    run: Uuid,
}

impl ActiveRun {
    fn begin(world: &Arc<World>, life: Life, ctx: &JobContext) -> Self {
        world.check_alone(life, ctx);
        world.state().active_runs.push((life, ctx.clone()));
        Self { world: Arc::clone(world), run: ctx.run_id }
    }
}

impl Drop for ActiveRun {
    fn drop(&mut self) {
        self.world.state().active_runs.retain(|(_, ctx)| ctx.run_id != self.run);
    }
}
