//! Whether a request that changes something may come from the page that sent it. The headers of the browser decide, so no form needs a
//! token that could expire or would have to be shared by daemons.

use axum::http::{HeaderMap, HeaderName, header};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether an unsafe request with these headers is accepted. `public_origin` is the origin of the console behind a proxy.
///
/// A browser sends `Sec-Fetch-Site` or `Origin` with every form. A request with neither is not from a page, so it must carry its
/// own credential.
pub(super) fn is_accepted(headers: &HeaderMap, public_origin: Option<&str>) -> bool {
    let site = only(headers, &SEC_FETCH_SITE);
    let origin = only(headers, &header::ORIGIN);
    match (site, origin) {
        (Sent::Once(site), _) => site == "same-origin" || site == "none",
        (Sent::Never, Sent::Once(origin)) => {
            public_origin == Some(origin) || is_of_host(origin, &only(headers, &header::HOST))
        }
        (Sent::Never, Sent::Never) => is_bearer(headers),
        (Sent::Invalid, _) | (_, Sent::Invalid) => false,
    }
}

/// How often a request has a header.
enum Sent<'a> {
    Never,
    Once(&'a str),
    Invalid,
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Sent<'a> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Sent::Never,
        (Some(value), None) => value.to_str().map_or(Sent::Invalid, Sent::Once),
        (Some(_), Some(_)) => Sent::Invalid,
    }
}

/// Whether `origin` is a page of this host and port.
fn is_of_host(origin: &str, host: &Sent<'_>) -> bool {
    let Sent::Once(host) = host else { return false };
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
}

fn is_bearer(headers: &HeaderMap) -> bool {
    let Sent::Once(value) = only(headers, &header::AUTHORIZATION) else { return false };
    value.split_once(' ').is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_pages_may_change_something() {
        let (host, public) = ("localhost:9464", "https://ops.example.com");
        let bearer = "authorization: Bearer x";
        let cookie = "cookie: billing-console=x";
        let mut checked = 0;
        let mut check = |lines: &[&str], accepted: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().expect("a header"));
            for line in lines {
                let (name, value) = line.split_once(": ").expect("a name and a value");
                headers.append(HeaderName::try_from(name).expect("a name"), value.parse().expect("a header"));
            }
            assert_eq!(is_accepted(&headers, Some(public)), accepted, "{lines:?}");
            checked += 1;
        };
        for also in [&[][..], &[bearer], &[cookie]] {
            for (site, accepted) in [
                ("same-origin", true),
                ("none", true),
                ("same-site", false),
                ("cross-site", false),
                ("Same-Origin", false),
                ("", false),
            ] {
                let site = format!("sec-fetch-site: {site}");
                check(&[&[&*site], also].concat(), accepted);
                // It wins over a matching origin.
                check(&[&[&*site, "origin: http://localhost:9464"], also].concat(), accepted);
            }
            for (origin, accepted) in [
                ("http://localhost:9464", true),
                ("https://localhost:9464", true),
                ("http://LOCALHOST:9464", true),
                ("https://ops.example.com", true),
                ("http://ops.example.com", false),
                ("https://ops.example.com.evil.example", false),
                ("http://localhost", false),
                ("http://localhost:9465", false),
                ("http://evil.example", false),
                ("null", false),
                ("localhost:9464", false),
                ("", false),
            ] {
                check(&[&[&*format!("origin: {origin}")], also].concat(), accepted);
            }
        }
        check(&[], false);
        check(&[cookie], false);
        check(&[bearer], true);
        check(&["authorization: Basic x"], false);
        check(&[bearer, bearer], false);
        check(&["sec-fetch-site: none", "sec-fetch-site: cross-site"], false);
        check(&["origin: http://localhost:9464", "origin: http://evil.example"], false);
        assert!(checked >= 40, "{checked}");
    }
}
