//! `myelin demo`, as a newcomer meets it.

use std::net::TcpStream;

use myelin_end_to_end::{Api, Demo, encode, run};
use serde_json::json;

use crate::guest::{event_id, wait};

/// A user of the demo by what it printed.
struct Printed {
    url: String,
    name: String,
    password: String,
    token: String,
}

/// What it printed behind a word, for each server.
fn printed(told: &str) -> Vec<Printed> {
    let values = |word: &str| -> Vec<String> {
        told.lines().filter_map(|line| Some(line.trim().strip_prefix(word)?.trim().to_owned())).collect()
    };
    let (urls, names) = (values("for clients"), values("user name"));
    let (passwords, tokens) = (values("password"), values("access token"));
    let all = urls.into_iter().zip(names).zip(passwords.into_iter().zip(tokens));
    all.map(|((url, name), (password, token))| Printed { url, name, password, token }).collect()
}

fn is_listening(url: &str) -> bool {
    TcpStream::connect(url.trim_start_matches("http://")).is_ok()
}

/// What it prints is enough to talk across the servers; Ctrl+C leaves nothing behind.
#[test]
fn demo_is_ready_for_clients() {
    run(async {
        let mut demo = Demo::start().await;
        let told = demo.told();
        let people = printed(&told);
        assert_eq!(people.len(), 3, "{told}");
        let alias = told.split_whitespace().find(|word| word.starts_with("#demo:")).unwrap();
        let alias = alias.trim_end_matches('.');

        let clients: Vec<Api> = people.iter().map(|person| Api::new(&person.url).with_token(&person.token)).collect();
        let found = clients[1].get(&format!("directory/room/{}", encode(alias))).await.ok();
        let room = encode(found["room_id"].as_str().unwrap());
        let words = json!({ "msgtype": "m.text", "body": "across" });
        let event = event_id(&clients[2].put(&format!("rooms/{room}/send/m.room.message/1"), words).await);
        for client in &clients {
            let path = format!("rooms/{room}/event/{}", encode(&event));
            wait("everybody hears it", async || (client.get(&path).await.status == 200).then_some(())).await;
        }
        for person in &people {
            let request = json!({
                "type": "m.login.password",
                "identifier": { "type": "m.id.user", "user": person.name },
                "password": person.password,
            });
            Api::new(&person.url).post("login", request).await.ok();
        }

        assert_eq!(demo.leftovers().len(), 1, "everything is in one folder");
        assert!(demo.interrupt().await.success());
        assert_eq!(demo.leftovers(), Vec::<String>::new());
        assert!(!people.iter().any(|person| is_listening(&person.url)), "the servers are gone");
    });
}

/// However it ends, its servers end too.
#[test]
fn demo_takes_its_servers_along() {
    run(async {
        let mut demo = Demo::start().await;
        let people = printed(&demo.told());
        demo.kill();
        for person in &people {
            wait("the server is gone", async || (!is_listening(&person.url)).then_some(())).await;
        }
    });
}
