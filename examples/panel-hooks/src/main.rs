//! Serves the receiver on 127.0.0.1:8080, for events with the secret in `WEBHOOK_SECRET`, of a daemon whose HTTP interface listens on
//! 127.0.0.1:9464. It prints what a panel would do.

use std::{env, io};

use panel_hooks::{Provider, Receiver, read_instances};

struct Printed;

impl Provider for Printed {
    fn set_running(&self, instance: &str, runs: bool) -> io::Result<()> {
        println!("{} instance {instance}", if runs { "start" } else { "stop and lock" });
        Ok(())
    }

    fn instances(&self, organization: &str) -> io::Result<Vec<String>> {
        read_instances("http://127.0.0.1:9464", organization)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let secret = env::var("WEBHOOK_SECRET").map_err(io::Error::other)?;
    let receiver = Receiver::new(&secret, Printed, "orders.json".into())?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    axum::serve(listener, receiver.routes()).await
}
