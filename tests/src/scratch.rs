//! Holds one test database open for trying things by hand: `cargo run -p e2e -- g3`.

use std::io::{self, Read};

use e2e::{Db, Login, Panel, Postgres};

#[tokio::main]
async fn main() -> io::Result<()> {
    let kind = std::env::args().nth(1).unwrap_or_default();
    let panel = match kind.as_str() {
        "postgres" => Panel::Empty,
        "g1" => Panel::G1,
        "g2" => Panel::G2,
        "g3" => Panel::G3,
        _ => return Err(io::Error::other("which database? (postgres, g1, g2, g3)")),
    };
    let db = Db::with_panel(panel, Login::Owner).await;
    let server = Postgres::server();
    println!("{}\n{}", server.folder().display(), server.port());
    for login in [Login::Admin, Login::Owner, Login::Billing] {
        println!("{}", db.url_for(login));
    }
    // Until the terminal says end-of-file, or somebody kills it: the server ends with this process either way.
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
