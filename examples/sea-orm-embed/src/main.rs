//! `DATABASE_URL=sqlite://app.db?mode=rwc cargo run -p sea-orm-embed`

use std::env;

use billing_scheduler::BoxError;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let runs = sea_orm_embed::run_three_times(&env::var("DATABASE_URL")?).await?;
    println!("{runs} runs in the database");
    Ok(())
}
