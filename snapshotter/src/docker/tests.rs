use std::path::Path;

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};

use super::*;

/// Times that are told apart however busy a machine is.
const SHORT: Duration = Duration::from_millis(50);
const FOR_GOOD: Duration = Duration::from_secs(3600);

/// What a dockerd does with each connection.
#[derive(Debug, Clone, Copy)]
enum Does {
    Answer(&'static str),
    Refuse,
    Hang,
}

/// A dockerd that counts its questions; it ends with this.
struct Fake {
    folder: TempDir,
    does: Arc<Mutex<(Does, usize)>>,
    serving: JoinHandle<()>,
}

impl Fake {
    fn start(does: Does) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("docker.sock")).unwrap();
        let does = Arc::new(Mutex::new((does, 0)));
        let serving = tokio::spawn(serve(listener, does.clone()));
        Self { folder, does, serving }
    }

    /// As somebody sees it who waits for as long as it takes.
    fn docker(&self) -> Docker {
        self.seen_with(Times { little: FOR_GOOD, much: FOR_GOOD, rest: FOR_GOOD })
    }

    fn seen_with(&self, times: Times) -> Docker {
        Docker::with(&[self.folder.path().join("docker.sock")], times)
    }

    fn now(&self, does: Does) {
        self.does.lock().unwrap().0 = does;
    }

    fn questions(&self) -> usize {
        self.does.lock().unwrap().1
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: UnixListener, does: Arc<Mutex<(Does, usize)>>) {
    let mut open = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        // Who has waited long enough is gone.
        let Some(asked) = read_question(&mut stream).await else { continue };
        assert!(
            asked.starts_with("GET /v1.44/containers/json?all=1 HTTP/1.1\r\nhost: docker\r\n"),
            "{asked}"
        );
        let now = {
            let mut does = does.lock().unwrap();
            does.1 += 1;
            does.0
        };
        let (status, body) = match now {
            Does::Answer(body) => ("200 OK", body),
            Does::Refuse => ("400 Bad Request", r#"{"message":"client version 1.44 is too old"}"#),
            Does::Hang => {
                open.push(stream);
                continue;
            }
        };
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
        let _gone = stream.write_all(answer.as_bytes()).await;
    }
}

async fn read_question(stream: &mut UnixStream) -> Option<String> {
    let mut text = String::new();
    while !text.ends_with("\r\n\r\n") {
        text.push(char::from(stream.read_u8().await.ok()?));
    }
    Some(text)
}

const WEB: &str = r#"[{"Id":"a1","Names":["/proxy/web","/web"],"Image":"x"},{"Id":"b2","Names":["/job.1"]}]"#;
const SHOP: &str = r#"[{"Id":"a1","Names":["/shop"]}]"#;

#[tokio::test]
async fn names_are_what_dockerd_says_now() {
    let fake = Fake::start(Does::Answer(WEB));
    let docker = fake.docker();
    assert_eq!(docker.name("a1"), None);
    assert!(docker.ask(Patience::Much).await.is_empty());
    assert_eq!((docker.name("a1").as_deref(), docker.name("b2").as_deref()), (Some("web"), Some("job.1")));
    fake.now(Does::Answer(SHOP));
    assert_eq!(docker.name("a1").as_deref(), Some("web"));
    assert!(docker.ask(Patience::Little).await.is_empty());
    assert_eq!((docker.name("a1").as_deref(), docker.name("b2")), (Some("shop"), None));
    assert_eq!(fake.questions(), 2);
}

#[tokio::test]
async fn what_is_no_name_is_none() {
    let names = |text: &str| api::parse(text.as_bytes());
    for none in [r#"["/web"]"#, "{}", r#"[{"Names":["/web"]}]"#, "[", "null"] {
        assert!(matches!(names(none), Err(ApiError::Answer(_))), "{none}");
    }
    let odd = [r#"null"#, r#"[]"#, r#"["/"]"#, r#"["web"]"#, r#"["/a/b"]"#, r#"["/-a"]"#, r#"["/a\u001b"]"#];
    for none in odd {
        assert_eq!(names(&format!(r#"[{{"Id":"a1","Names":{none}}}]"#)).unwrap(), Names::new(), "{none}");
    }
}

#[tokio::test]
async fn one_that_hangs_holds_nobody_up_for_long() {
    let fake = Fake::start(Does::Answer(WEB));
    let docker = fake.seen_with(Times { little: SHORT, much: FOR_GOOD, rest: FOR_GOOD });
    assert!(docker.ask(Patience::Much).await.is_empty());
    fake.now(Does::Hang);
    let asked = futures::future::join_all((0..5).map(|_| docker.ask(Patience::Little))).await;
    for said in asked {
        let said = said[0].to_string();
        assert!(said.contains("docker.sock") && said.contains("no answer within 50ms"), "{said}");
    }
    assert_eq!(docker.name("a1").as_deref(), Some("web"), "what it said before");
    // It is left alone, but by those who cannot do without, though it answers by now.
    fake.now(Does::Answer(SHOP));
    let questions = fake.questions();
    assert_eq!(docker.ask(Patience::Little).await.len(), 1);
    assert_eq!(fake.questions(), questions);
    assert!(docker.ask(Patience::Much).await.is_empty());
    assert_eq!(docker.name("a1").as_deref(), Some("shop"));
    // Which ends the rest.
    assert!(docker.daemons[0].rests().is_none());
}

#[tokio::test]
async fn one_that_hung_is_asked_again_after_a_rest() {
    let fake = Fake::start(Does::Hang);
    let docker = fake.seen_with(Times { little: FOR_GOOD, much: SHORT, rest: Duration::ZERO });
    let said = docker.ask(Patience::Much).await[0].to_string();
    assert!(said.contains("no answer within 50ms"), "{said}");
    fake.now(Does::Answer(SHOP));
    assert!(docker.ask(Patience::Little).await.is_empty());
    assert_eq!(docker.name("a1").as_deref(), Some("shop"));
}

#[tokio::test]
async fn why_there_is_no_answer_is_said() {
    let fake = Fake::start(Does::Refuse);
    let docker = fake.docker();
    let said = docker.ask(Patience::Much).await[0].to_string();
    assert!(said.contains("400 Bad Request: client version 1.44 is too old"), "{said}");
    fake.now(Does::Answer("[{}]"));
    let said = docker.ask(Patience::Little).await[0].to_string();
    assert!(said.contains("its answer is none"), "{said}");
    // A refusal is an answer: it is asked again at once.
    fake.now(Does::Answer(SHOP));
    assert!(docker.ask(Patience::Little).await.is_empty());
    let nowhere = Docker::new(&[Path::new("/nowhere/docker.sock").to_owned()]);
    let said = nowhere.ask(Patience::Much).await[0].to_string();
    assert!(said.contains("/nowhere/docker.sock") && said.contains("No such file"), "{said}");
    assert!(Docker::default().ask(Patience::Much).await.is_empty());
}
