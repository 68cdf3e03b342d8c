//! The connection to a database on another host: no other server may impersonate it.

use billing_test_support::{Db, Login, Panel, Postgres, Program, eventually};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::daemon::{BILLING, HEARTBEAT, program, seed, with_panel_billing_off};

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate")
}

/// A certificate for `host`, and its key.
fn certified(authority: &CertifiedIssuer<'static, KeyPair>, host: &str) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![host.to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    (certificate.pem(), key.serialize_pem())
}

#[tokio::test]
async fn certificate_of_other_authority_is_rejected() {
    let server = Postgres::private().await;
    let db = Db::on_server(server, Panel::G1, Login::Billing).await;
    seed(&db, 2).await;
    let (ours, another) = (authority("ours"), authority("another"));
    let (certificate, key) = certified(&ours, "127.0.0.1");
    server.serve_tls(&certificate, &key).await.expect("the server's files are written");
    let with = |parameters: &str| -> Program {
        let program = program().file("ours.pem", &ours.pem()).file("another.pem", &another.pem());
        let url = format!("{}?{}", db.url, parameters.replace('@', &program.folder().display().to_string()));
        program
            .env("DATABASE_URL", &url)
            .file("jobs.toml", &with_panel_billing_off(&db, &[BILLING, HEARTBEAT].concat()))
    };
    let verified = with("sslmode=verify-full&sslrootcert=@/ours.pem");
    eventually("the server speaks TLS", async || {
        (verified.run("migrate status").await.code == Some(0)).then_some(())
    })
    .await;
    verified.run("bill").await.expect_code(0);
    let running = verified.start("run");
    running.wait_for_line("runs billing, heartbeat as").await;
    let encrypted = "SELECT bool_and(s.ssl)::text FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid)
                      WHERE a.application_name = 'billing-daemon' AND a.datname = current_database()";
    assert_eq!(crate::daemon::fetch(&db, encrypted).await, "true");
    running.terminated().await.expect_code(0);

    for (parameters, why) in [
        ("sslmode=verify-full&sslrootcert=@/another.pem", "another authority"),
        ("sslmode=verify-full", "the public authorities"),
        ("sslmode=verify-full&sslrootcert=@/none.pem", "a missing file"),
    ] {
        let ended = with(parameters).run("migrate status").await;
        assert_ne!(ended.code, Some(0), "{why}: {}", ended.text());
        assert!(
            ended.text().contains("cannot open postgres://billing_run@127.0.0.1"),
            "{why}: {}",
            ended.text()
        );
    }
    let (certificate, key) = certified(&ours, "db.example.com");
    server.serve_tls(&certificate, &key).await.expect("the server's files are written");
    eventually("a certificate for another host is refused", async || {
        (verified.run("migrate status").await.code != Some(0)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn remote_database_needs_verified_tls() {
    let elsewhere = "postgres://billing@db.invalid/panel";
    let jobs = [BILLING, HEARTBEAT].concat();
    for (url, section, refused) in [
        (elsewhere.to_owned(), "", true),
        (format!("{elsewhere}?sslmode=require"), "", true),
        (format!("{elsewhere}?sslmode=verify-full"), "", false),
        (elsewhere.to_owned(), "[daemon]\nallow-unverified-database = true\n", false),
        ("postgres://billing@localhost/panel".to_owned(), "", false),
    ] {
        let program = program().env("DATABASE_URL", &url).file("jobs.toml", &format!("{section}{jobs}"));
        let ended = program.run("check").await.expect_code(if refused { 78 } else { 0 });
        if refused {
            assert!(
                ended.text().contains("cannot use the database on db.invalid: nothing verifies its identity"),
                "{}",
                ended.text()
            );
            for command in ["run", "bill", "audit", "status", "migrate up", "guard status"] {
                let ended = program.run(command).await.expect_code(78);
                assert!(ended.text().contains("sslmode=verify-full"), "{command}: {}", ended.text());
            }
        }
    }
}
