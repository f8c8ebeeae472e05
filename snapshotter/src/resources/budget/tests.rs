use super::*;

fn budget(all: &[(&str, &str)]) -> Budget {
    let one = |(file, text): &(&str, &str)| {
        let file: File = file.parse().unwrap();
        Dimension::amounts(&file, &Amount::parse(&file, text).unwrap())
    };
    all.iter().flat_map(one).collect()
}

fn holding(id: &str, container: &str, pod: Option<&str>, grants: &[(&str, &str)]) -> Holding {
    let (namespace, name) = container.split_once('/').unwrap();
    let key = ContainerKey { namespace: namespace.into(), id: name.into() };
    let grants = grants.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
    let resources = Resources { grants, caps: BTreeMap::new() };
    Holding::new(id, &key, pod.map(str::to_owned), format!("{id}@1"), [&resources])
}

fn ask(ceilings: &Ceilings, held: &[Holding], asked: &[Holding]) -> Result<(), String> {
    let mut reservation = Budgets::new(ceilings.clone()).open();
    reservation.take(asked.to_vec(), || held.to_vec()).map_err(|error| error.to_string())
}

#[test]
fn each_scope_has_a_budget_of_its_own() {
    let memory = |much: &str| budget(&[("memory.max", much)]);
    let of =
        |id: &str, container: &str, pod, much: &str| holding(id, container, pod, &[("memory.max", much)]);
    let held = [
        of("a", "default/web", None, "300M"),
        of("b", "k8s.io/c1", Some("shop/p"), "300M"),
        of("c", "k8s.io/c2", Some("shop/p"), "300M"),
    ];
    let more = [of("d", "k8s.io/c1", Some("shop/p"), "200M")];
    for (ceilings, words) in [
        (
            Ceilings { node: memory("1000M"), ..Ceilings::default() },
            "of the node is 1000MiB, of which 900MiB is used",
        ),
        (
            Ceilings { namespace: memory("700M"), ..Ceilings::default() },
            "the namespace k8s.io is 700MiB, of which 600MiB",
        ),
        (Ceilings { pod: memory("799M"), ..Ceilings::default() }, "the pod shop/p is 799MiB"),
        (
            Ceilings { container: memory("499M"), ..Ceilings::default() },
            "the container k8s.io/c1 is 499MiB, of which 300MiB is used (300MiB by b@1 in k8s.io/c1)",
        ),
        (
            Ceilings {
                namespace: memory("10G"),
                namespaces: BTreeMap::from([("k8s.io".into(), memory("1M"))]),
                ..Ceilings::default()
            },
            "[budgets.namespaces.k8s.io]",
        ),
    ] {
        let error = ask(&ceilings, &held, &more).unwrap_err();
        assert!(error.contains(words), "{error}");
        assert!(error.contains("d@1 asks for 200MiB of memory.max"), "{error}");
        assert_eq!(ask(&ceilings, &held[..1], &[]), Ok(()));
    }
    let enough = Ceilings { node: memory("1100M"), pod: memory("800M"), ..Ceilings::default() };
    assert_eq!(ask(&enough, &held, &more), Ok(()));
    // Together they are too much.
    let twice = [more[0].clone(), of("e", "default/web", None, "1K")];
    assert!(
        ask(&enough, &held, &twice).unwrap_err().contains("d@1, e@1 asks")
            || ask(&enough, &held, &twice).is_err()
    );
}

#[test]
fn what_lowers_is_never_refused_and_what_is_there_counts_once() {
    let ceilings = Ceilings { node: budget(&[("pids.max", "10")]), ..Ceilings::default() };
    let of = |much: &str| holding("a", "default/web", None, &[("pids.max", much)]);
    // Over budget since the configuration changed: less is welcome, more is not.
    assert_eq!(ask(&ceilings, &[of("30")], &[of("20")]), Ok(()));
    assert!(ask(&ceilings, &[of("30")], &[of("31")]).is_err());
    assert_eq!(ask(&ceilings, &[of("5")], &[of("10")]), Ok(()));
}

#[test]
fn calls_at_the_same_time_do_not_share_what_is_left() {
    let budgets = Budgets::new(Ceilings { node: budget(&[("cpu.max", "1cpus")]), ..Ceilings::default() });
    let of = |id: &str| vec![holding(id, "default/web", None, &[("cpu.max", "30000 50000")])];
    let (mut first, mut second) = (budgets.open(), budgets.open());
    first.take(of("a"), Vec::new).unwrap();
    let error = second.take(of("b"), Vec::new).unwrap_err().to_string();
    assert!(error.contains("0.6cpus of cpu.max") && error.contains("is 1cpus"), "{error}");
    // On record too meanwhile: once.
    second.take(of("a"), || of("a")).unwrap();
    drop(second);
    drop(first);
    budgets.open().take(of("b"), Vec::new).unwrap();
}

#[test]
fn what_is_used_is_listed_with_its_users() {
    let ceilings =
        Ceilings { node: budget(&[("memory.max", "1G"), ("io.max", "8:0 rbps=10M")]), ..Ceilings::default() };
    let grants: &[(&str, &str)] =
        &[("memory.max", "100M"), ("io.max", "8:0 rbps=1M wiops=3"), ("cpuset.cpus", "0-3")];
    let usage = Budgets::new(ceilings).usage(vec![holding("a", "default/web", Some("s/p"), grants)]);
    let lines: Vec<String> = usage
        .iter()
        .map(|one| {
            let show = |number| one.dimension.show(number);
            let budget = one.budget.map_or("-".to_owned(), show);
            format!(
                "{} {} {} {} {}",
                one.scope.kind(),
                one.scope.name(),
                one.dimension,
                budget,
                show(one.used)
            )
        })
        .collect();
    assert_eq!(lines[0], "node  memory.max 1GiB 100MiB");
    assert_eq!(lines[1], "node  io.max 8:0 rbps 10MiB/s 1MiB/s");
    assert_eq!(lines[2], "node  io.max 8:0 wiops - 3");
    assert!(lines.contains(&"pod s/p memory.max - 100MiB".to_owned()), "{lines:#?}");
    assert_eq!(lines.len(), 12);
}

#[test]
fn bytes_are_shown_short() {
    for (bytes, text) in
        [(0, "0B"), (1023, "1023B"), (1536, "1.5KiB"), (1 << 30, "1GiB"), (u64::MAX, "17179869183.9GiB")]
    {
        assert_eq!(show_bytes(bytes), text);
    }
}
