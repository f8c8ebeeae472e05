//! Who is let in, how many, and for how long.

use super::*;

#[tokio::test]
async fn who_has_no_good_certificate_is_told_nothing_and_written_down() {
    let bed = Bed::start().await;
    let now = SystemTime::now();
    let issue = |from, until| bed.authority.client("a", Role::Admin, Period { from, until }).unwrap();
    let other = Authority::new(Period::lasting(DAY)).unwrap();
    let stranger = other.client("a", Role::Admin, Period::lasting(DAY / 2)).unwrap();
    let server = bed.authority.server(&["127.0.0.1".parse().unwrap()], Period::lasting(DAY)).unwrap();
    for (own, told, written) in [
        (None, "CertificateRequired", "peer sent no certificates"),
        (Some(issue(now - DAY * 2, now - DAY)), "CertificateExpired", "certificate expired"),
        (Some(issue(now + DAY, now + DAY * 2)), "CertificateExpired", "not valid yet"),
        (Some(stranger), "UnknownCA", "UnknownIssuer"),
        // What a server shows to clients opens no door.
        (Some(server), "UnsupportedCertificate", "extended key usage"),
    ] {
        let refusal = bed.refusal(own.as_ref()).await;
        assert!(refusal.contains(told), "{told}: {refusal}");
        self::written(&["audit", "refused", "peer=127.0.0.1:", written]).await;
    }
    // Without TLS there is no answer at all.
    let mut plain = TcpStream::connect(bed.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut heard = Vec::new();
    _ = plain.read_to_end(&mut heard).await;
    assert!(heard.len() <= 7, "an alert of TLS at most: {heard:?}"); // RFC 8446, section 6: 5 bytes and 2
    written(&["audit", "refused", "corrupt message"]).await;
    // Nobody of them was heard of by capsuled.
    assert!(bed.headers.lock().unwrap().is_empty());
    bed.stop().await;
}

#[tokio::test]
async fn connections_of_one_client_are_counted() {
    let bed = Bed::start_with(|remote| remote.connections = 4).await;
    let own = bed.issue("greedy", Role::Viewer);
    let first = bed.channel(&own).await;
    list(&first, "tz").await.unwrap();
    // It was let in, and is hung up on.
    let refusal = bed.refusal(Some(&own)).await;
    assert!(!refusal.contains("lert"), "{refusal}");
    list(&bed.client(Role::Operator).await, "tz").await.unwrap();
    list(&first, "tz").await.unwrap();
    bed.stop().await;
}

#[tokio::test]
async fn capsuled_may_go_and_come_again() {
    let mut bed = Bed::start().await;
    let channel = bed.client(Role::Viewer).await;
    list(&channel, "tz").await.unwrap();
    drop(bed.capsuled.take());
    let socket = bed.folder.path().join("capsuled.sock");
    fs::remove_file(&socket).unwrap();
    let mut last = Ok(String::new());
    for _ in 0..600 {
        last = list(&channel, "tz").await;
        if last.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let status = last.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("capsuled"), "{status}");
    let (_capsuled, _) = serve_capsuled(&socket);
    list(&channel, "tz").await.unwrap();
    bed.stop().await;
}

#[tokio::test]
async fn renewed_certificates_are_used_and_other_authorities_end_connections() {
    let bed = Bed::start().await;
    let own = bed.issue("a", Role::Viewer);
    let before = bed.connect(Some(&own)).await.unwrap().0;
    let shown = |tls: &TlsStream<TcpStream>| tls.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let channel = bed.channel(&own).await;
    // Only one of the two files is new: they are no pair, and those from before are used.
    let renewed = bed.authority.server(&["127.0.0.1".parse().unwrap()], Period::lasting(DAY)).unwrap();
    put(&bed.remote.key, &renewed.key);
    assert_eq!(shown(&bed.connect(Some(&own)).await.unwrap().0), shown(&before));
    put(&bed.remote.certificate, &renewed.certificate);
    let after = bed.connect(Some(&own)).await.unwrap().0;
    assert_ne!(shown(&after), shown(&before));
    // Connections from before go on.
    list(&channel, "tz").await.unwrap();
    let other = Authority::new(Period::lasting(DAY)).unwrap();
    put(&bed.remote.client_ca, &other.to_pem().unwrap().certificate);
    bed.reload.send(()).await.unwrap();
    let refusal = bed.refusal(Some(&own)).await;
    assert!(refusal.contains("UnknownCA"), "{refusal}");
    let mut ended = false;
    for _ in 0..600 {
        ended = list(&channel, "tz").await.is_err();
        if ended {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(ended, "a connection by an authority that is believed no more goes on");
    bed.stop().await;
}

#[tokio::test]
async fn who_is_let_in_is_not_for_longer_than_the_certificate() {
    let bed = Bed::start().await;
    // On a machine that is busy the first ones end before they are shown.
    let mut let_in = None;
    for seconds in [3, 10, 30, 90] {
        let now = SystemTime::now();
        let period = Period { from: now - DAY, until: now + Duration::from_secs(seconds) };
        let own = bed.authority.client("short", Role::Viewer, period).unwrap();
        if let Ok(connection) = bed.connect(Some(&own)).await {
            let_in = Some(bed.over(connection).await);
            break;
        }
    }
    let channel = let_in.unwrap();
    let mut last = Ok(String::new());
    for _ in 0..600 {
        last = list(&channel, "tz").await;
        if last.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(last.unwrap_err().code(), Code::Unauthenticated);
    bed.stop().await;
}

#[test]
fn files_that_cannot_be_used_are_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(Period::lasting(DAY * 100)).unwrap();
    let fresh = || files(folder.path(), &authority, Period::lasting(DAY));
    Material::load(&fresh()).unwrap();
    let told = |remote: &Remote| {
        let error = Material::load(remote).unwrap_err();
        std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": ")
    };
    let remote = fresh();
    fs::set_permissions(&remote.key, fs::Permissions::from_mode(0o640)).unwrap();
    let exposed = told(&remote);
    assert!(exposed.contains("server.key (mode 0640)") && exposed.contains("chmod 600"), "{exposed}");
    let other = authority.client("a", Role::Viewer, Period::lasting(DAY)).unwrap();
    for (which, text, words) in [
        ("server.key", other.key.as_str(), ["server.pem", "server.key"]),
        ("server.key", "", ["server.key", "no private key"]),
        ("server.pem", "x", ["server.pem", "no readable certificate"]),
        ("ca.pem", "", ["ca.pem", "no readable certificate"]),
        ("ca.pem", other.certificate.as_str(), ["ca.pem", "no authority's"]),
    ] {
        let remote = fresh();
        put(&folder.path().join(which), text);
        let told = told(&remote);
        assert!(words.iter().all(|word| told.contains(word)), "{which}: {told}");
    }
    let remote = fresh();
    fs::remove_file(&remote.client_ca).unwrap();
    assert!(told(&remote).contains("No such file"), "{}", told(&remote));
    // A server's certificate that has ended is not refused here: the node is not to lose its API for it.
    let now = SystemTime::now();
    Material::load(&files(folder.path(), &authority, Period { from: now - DAY * 2, until: now - DAY }))
        .unwrap();
}
