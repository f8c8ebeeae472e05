//! Listings: what filters select, and how the answer comes.

use super::{Subject, committed, labels, none};

pub async fn listings_filter_as_containerd_does(subject: &mut Subject) {
    subject.prepare("a-np", "", none()).await.unwrap();
    committed(subject, "p", "").await;
    subject.prepare("a", "p", none()).await.unwrap();
    subject.view("v", "p", none()).await.unwrap();
    subject.prepare("p-wl-key", "", none()).await.unwrap();
    subject.commit("p-wl", "p-wl-key", labels(&[("l", "1")])).await.unwrap();
    subject.prepare("a-wl", "p-wl", labels(&[("l", "2")])).await.unwrap();
    subject.view("v-wl", "p-wl", labels(&[("l", "3"), ("d.e/f", "x y")])).await.unwrap();
    subject.prepare("a-np-wl", "", labels(&[("l", "2")])).await.unwrap();

    let cases: [(&[&str], &[&str]); 20] = [
        (&[""], &["a", "a-np", "a-np-wl", "a-wl", "p", "p-wl", "v", "v-wl"]),
        (&["kind==active"], &["a", "a-np", "a-np-wl", "a-wl"]),
        (&["kind==view"], &["v", "v-wl"]),
        (&["kind==committed"], &["p", "p-wl"]),
        (&["name==KEY(p)", "name==KEY(a-np-wl)"], &["a-np-wl", "p"]),
        (&["name==KEY(a-wl),labels.l"], &["a-wl"]),
        (&["parent==KEY(p)"], &["a", "v"]),
        (&["parent!=\"\""], &["a", "a-wl", "v", "v-wl"]),
        (&["labels.l"], &["a-np-wl", "a-wl", "p-wl", "v-wl"]),
        (&["labels.l==2"], &["a-np-wl", "a-wl"]),
        (&["labels.l~=/^[13]$/"], &["p-wl", "v-wl"]),
        (&["labels.\"d.e/f\"==\"x y\"", "kind==none"], &["v-wl"]),
        (&["unknown"], &[]),
        (&["unknown!=x"], &["a", "a-np", "a-np-wl", "a-wl", "p", "p-wl", "v", "v-wl"]),
        (&["labels.l!=2"], &["a", "a-np", "p", "p-wl", "v", "v-wl"]),
        (&["parent==\"\""], &["a-np", "a-np-wl", "p", "p-wl"]),
        (&["kind~=/^[va]/,labels.l~=[23]"], &["a-np-wl", "a-wl", "v-wl"]),
        (&["labels.l~=|3|", "kind==committed,labels.l!=1"], &["p", "v-wl"]),
        (&["labels.l~=/[/"], &[]),
        (&["labels.l, kind == view"], &["v-wl"]),
    ];
    for (filters, expected) in cases {
        assert_eq!(subject.list(filters).await.unwrap(), expected, "{filters:?}");
    }
}

pub async fn a_listing_says_what_stat_says_by_key(subject: &mut Subject) {
    committed(subject, "B", "").await;
    committed(subject, "A", "B").await;
    subject.prepare("c", "A", labels(&[("l", "1")])).await.unwrap();
    subject.view("b", "B", none()).await.unwrap();
    let listed = subject.list_blocks().await.unwrap().concat();
    let names: Vec<&str> = listed.iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["A", "B", "b", "c"]);
    for info in &listed {
        assert_eq!(subject.stat(&info.name).await.unwrap(), *info);
    }
}

pub async fn long_listings_come_whole_and_in_blocks(subject: &mut Subject) {
    let mut expected: Vec<String> = (0..250).map(|n| format!("s{n}")).collect();
    for key in &expected {
        subject.prepare(key, "", none()).await.unwrap();
    }
    expected.sort();
    assert_eq!(subject.list(&[""]).await.unwrap(), expected);
    let blocks: Vec<usize> = subject.list_blocks().await.unwrap().iter().map(Vec::len).collect();
    assert_eq!(blocks, [100, 100, 50]);
}
