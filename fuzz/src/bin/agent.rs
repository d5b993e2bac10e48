//! Agent messages and the kernel command line, as daemon and agent would read them. Whatever can
//! be read must read the same after having been written.

use std::process::ExitCode;

use anneal_protocol::agent::{EnrollRequest, Next, NextRequest, Report, StepResult};
use anneal_protocol::cmdline::Boot;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn main() -> ExitCode {
    let order = |run: &str| format!(r#"{{"run":"{run}","step":3,"attempt":1}}"#);
    let seeds = [
        r#"{"token":"ab","machine":"r1n1","csr":"-----BEGIN","mac":"52:54:00:aa:00:01","boot_id":"1"}"#.to_owned(),
        format!(
            r#"{{"next":"order","id":{},"name":"write","timeout_ms":9,"action":{{"uses":"stream-image","image":"blake3:00","disk":{{"hints":{{"type":"nvme","min_size":1}},"protected":[{{"serial":"S"}}]}},"verify":"full"}}}}"#,
            order("a")
        ),
        format!(r#"{{"order":{},"boot_id":"1","progress":{{"done":1,"total":2}},"logs":[{{"at":1,"level":"info","text":"x"}}]}}"#, order("b")),
        format!(r#"{{"order":{},"boot_id":"1","outcome":{{"outcome":"failed","code":"no-disk","message":"none","retryable":false}}}}"#, order("c")),
        "anneal.server=https://10.0.0.1:1 anneal.ca=00 anneal.token=1 anneal.machine=m anneal.run=r anneal.time=1 anneal.mac=52:54:00:aa:00:01 anneal.ip=10.0.0.2/24 anneal.gateway=10.0.0.1".to_owned(),
    ];
    let seeds: Vec<Vec<u8>> = seeds.into_iter().map(String::into_bytes).collect();
    anneal_fuzz::run(&seeds, look)
}

fn look(bytes: &[u8]) {
    same_again::<EnrollRequest>(bytes);
    same_again::<NextRequest>(bytes);
    same_again::<Next>(bytes);
    same_again::<Report>(bytes);
    same_again::<StepResult>(bytes);
    if let Ok(boot) = Boot::parse(&String::from_utf8_lossy(bytes)) {
        assert_eq!(Boot::parse(&boot.to_cmdline()), Ok(boot));
    }
}

fn same_again<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    let Ok(message) = serde_json::from_slice::<T>(bytes) else {
        return;
    };
    let text = serde_json::to_vec(&message).expect("a message can be written");
    let again: T = serde_json::from_slice(&text).expect("what was written can be read");
    assert_eq!(serde_json::to_vec(&again).expect("written again"), text);
}
