//! Calls of clients who were let in.

use super::*;

#[tokio::test]
async fn each_role_may_call_what_it_may() {
    let bed = Bed::start().await;
    // The stand-in serves Capsules alone: what is let through to another service is unimplemented there.
    let (refused, passed) = (Code::PermissionDenied, Code::Unimplemented);
    for (role, attaches, with_device, pulls) in [
        (Role::Viewer, refused, refused, refused),
        (Role::Operator, passed, refused, refused),
        (Role::Admin, passed, passed, passed),
    ] {
        let channel = bed.client(role).await;
        assert_eq!(list(&channel, "tz").await.unwrap(), "tz");
        let (attached, device, pulled) =
            (attach(&channel, &[]).await, attach(&channel, &["v/c=0"]).await, pull(&channel).await);
        assert_eq!([attached.code(), device.code(), pulled.code()], [attaches, with_device, pulls], "{role}");
        bed.wrote(role.name(), &["ListCapsules", "object=\"tz\"", "outcome=\"OK\""]).await;
        let outcome = format!("outcome=\"{pulls:?}\"");
        bed.wrote(role.name(), &["Transfers/Pull", "registry.example/tz:1", &outcome]).await;
        if pulls == refused {
            assert!(pulled.message().contains("this call needs admin"), "{pulled}");
        } else {
            bed.wrote(role.name(), &["Transfers/Pull", "outcome=\"begun\""]).await;
        }
    }
    bed.wrote(
        "operator",
        &["Attachments/Attach", "object=\"web tz v/c=0\"", "role=\"operator\"", "needs admin"],
    )
    .await;
    bed.stop().await;
}

#[tokio::test]
async fn what_is_passed_on_is_the_call_and_nothing_beside_it() {
    let bed = Bed::start().await;
    let channel = bed.client(Role::Admin).await;
    let mut request = Request::new(v1::ListCapsulesRequest { name: "tz".to_owned() });
    request.metadata_mut().insert("containerd-namespace", "moby".parse().unwrap());
    request.metadata_mut().insert("traceparent", "00-1-2-01".parse().unwrap());
    let mut client = CapsulesClient::new(channel.clone());
    client.list_capsules(request).await.unwrap();
    let headers = bed.headers.lock().unwrap().join(" ");
    assert!(headers.contains("traceparent") && !headers.contains("containerd"), "{headers}");
    // An error comes back as it is, with what it is about.
    let request = v1::InspectCapsuleRequest { name: "x".to_owned(), version: "1".to_owned() };
    let error = client.inspect_capsule(request).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "no capsule `x`"));
    bed.wrote("admin", &["InspectCapsule", "object=\"x@1\"", "outcome=\"NotFound\""]).await;
    // A stream, of which the first message is looked at.
    let header = v1::BuildHeader { name: "big".to_owned(), version: "1".to_owned(), ..Default::default() };
    let first = v1::BuildRequest { part: Some(v1::build_request::Part::Header(header)) };
    let tar = v1::BuildRequest { part: Some(v1::build_request::Part::Tar(vec![7; 1 << 20])) };
    let parts = std::iter::once(first).chain(std::iter::repeat_n(tar, 20));
    let answer = client.build(tokio_stream::iter(parts)).await.unwrap().into_inner();
    assert_eq!(answer.version.unwrap().size, 20 << 20);
    bed.wrote("admin", &["Capsules/Build", "object=\"big@1\"", "outcome=\"begun\""]).await;
    bed.wrote("admin", &["Capsules/Build", "object=\"big@1\"", "outcome=\"OK\""]).await;
    bed.stop().await;
}

#[tokio::test]
async fn what_is_not_for_clients_elsewhere_is_not_there() {
    let bed = Bed::start().await;
    let channel = bed.client(Role::Admin).await;
    let request = capsule_proto::containerd::services::snapshots::v1::ListSnapshotsRequest::default();
    let mut snapshots =
        capsule_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient::new(channel);
    let error = snapshots.list(request).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    bed.wrote("admin", &["Snapshots/List", "outcome=\"Unimplemented\"", "no such call"]).await;
    bed.stop().await;
}

#[tokio::test]
async fn who_was_let_in_is_told_what_there_is() {
    let bed = Bed::start().await;
    let mut reflection = ServerReflectionClient::new(bed.client(Role::Viewer).await);
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers =
        reflection.server_reflection_info(tokio_stream::iter([ask])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(services)) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = services.service.into_iter().map(|service| service.name).collect();
    for name in ["capsule.v1.Attachments", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"] {
        assert!(names.iter().any(|known| known == name), "{names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("containerd") || name.contains("node")), "{names:?}");
    bed.stop().await;
}

#[tokio::test]
async fn too_many_calls_are_refused_with_when_to_come_again() {
    let bed = Bed::start_with(|remote| (remote.calls_per_second, remote.burst) = (1, 3)).await;
    let channel = bed.client(Role::Viewer).await;
    let mut refused = None;
    // As many at once as a machine that is busy does not spread over so many seconds.
    for _ in 0..10 {
        let calls: Vec<_> = (0..20)
            .map(|_| {
                tokio::spawn({
                    let channel = channel.clone();
                    async move { list(&channel, "tz").await }
                })
            })
            .collect();
        for call in calls {
            refused = call.await.unwrap().err().or(refused);
        }
        if refused.is_some() {
            break;
        }
    }
    let status = refused.expect("so many calls at once are too many");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("more than 1 calls a second, after 3 at once"), "{status}");
    let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap();
    assert!((1..=1000).contains(&pushback.parse::<u64>().unwrap()), "{pushback}");
    let details = capsule_proto::google::rpc::Status::decode(status.details()).unwrap().details;
    assert_eq!(details[0].type_url, "type.googleapis.com/google.rpc.RetryInfo");
    bed.wrote("viewer", &["outcome=\"ResourceExhausted\""]).await;
    // Another client is not held up.
    list(&bed.client(Role::Admin).await, "tz").await.unwrap();
    bed.stop().await;
}

#[tokio::test]
async fn a_call_that_is_given_up_is_written_down() {
    let bed = Bed::start().await;
    let channel = bed.client(Role::Admin).await;
    let header = v1::BuildHeader { name: "late".to_owned(), version: "1".to_owned(), ..Default::default() };
    let first = v1::BuildRequest { part: Some(v1::build_request::Part::Header(header)) };
    let (sender, parts) = mpsc::channel(1);
    sender.send(first).await.unwrap();
    let mut client = CapsulesClient::new(channel);
    let call = tokio::spawn(async move {
        client.build(tokio_stream::wrappers::ReceiverStream::new(parts)).await.map(drop)
    });
    bed.wrote("admin", &["Capsules/Build", "late@1", "outcome=\"begun\""]).await;
    call.abort();
    drop(sender);
    bed.wrote("admin", &["Capsules/Build", "late@1", "outcome=\"Cancelled\""]).await;
    bed.stop().await;
}

#[tokio::test]
async fn following_is_for_viewers_and_written_down_when_it_begins() {
    let bed = Bed::start().await;
    let channel = bed.client(Role::Viewer).await;
    let error = EventsClient::new(channel).watch(v1::WatchRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented); // the stand-in's
    bed.wrote("viewer", &["Events/Watch", "outcome=\"begun\""]).await;
    bed.stop().await;
}
