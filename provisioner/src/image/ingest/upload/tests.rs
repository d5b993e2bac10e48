//! Connections that break, overlap and contradict each other.

use std::io::Read as _;

use futures_util::stream;

use super::*;
use crate::image::ingest::pipe::{Receiver, pipe};

fn upload() -> (Arc<Upload>, Receiver, Arc<Progress>) {
    let (sender, receiver) = pipe();
    let progress: Arc<Progress> = Arc::default();
    let upload = Upload::new(sender, Arc::clone(&progress));
    (Arc::new(upload), receiver, progress)
}

fn body(chunks: &[Result<&'static str, ()>]) -> impl Stream<Item = Result<Bytes, ()>> + Unpin {
    let chunks: Vec<_> = chunks
        .iter()
        .map(|c| c.map(|t| Bytes::from_static(t.as_bytes())))
        .collect();
    stream::iter(chunks)
}

fn part(text: &str) -> Part {
    Part::parse(Some(text), None).unwrap()
}

async fn all(mut receiver: Receiver) -> std::io::Result<String> {
    let read = move || {
        let mut text = String::new();
        receiver.read_to_string(&mut text).map(|_| text)
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

#[test]
fn ranges_are_read_strictly() {
    let range = |first, last, total| Part::Range { first, last, total };
    assert_eq!(part("bytes 0-4/10"), range(0, 4, Some(10)));
    assert_eq!(part("bytes 5-9/*"), range(5, 9, None));
    assert_eq!(part("bytes */10"), Part::End(10));
    assert_eq!(Part::parse(None, Some(7)).unwrap(), Part::Whole(Some(7)));
    for text in [
        "",
        "bytes",
        "bytes 4-3/10",
        "bytes 0-10/10",
        "bytes */*",
        "bytes -5/10",
        "bits 0-1/2",
        "bytes 0-18446744073709551615/*",
    ] {
        let error = Part::parse(Some(text), None).unwrap_err();
        assert!(matches!(error, PutError::Range(_)), "{text}");
    }
}

#[tokio::test]
async fn an_upload_goes_on_where_it_broke_off() {
    let (upload, receiver, progress) = upload();
    let error = upload
        .put(part("bytes 0-9/10"), body(&[Ok("abc"), Err(())]))
        .await
        .unwrap_err();
    assert!(matches!(error, PutError::Broken(3)), "{error}");
    assert_eq!((progress.received(), progress.total()), (3, Some(10)));
    let error = upload
        .put(part("bytes 2-9/10"), body(&[Ok("cdefghij")]))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            PutError::Offset {
                given: 2,
                expected: 3
            }
        ),
        "{error}"
    );
    let error = upload
        .put(part("bytes 3-9/11"), body(&[Ok("defghij")]))
        .await
        .unwrap_err();
    assert!(
        matches!(error, PutError::Total { said: 10, now: 11 }),
        "{error}"
    );
    assert!(
        !upload
            .put(part("bytes 3-5/10"), body(&[Ok("def")]))
            .await
            .unwrap()
    );
    assert!(
        upload
            .put(part("bytes 6-9/10"), body(&[Ok("ghij")]))
            .await
            .unwrap()
    );
    assert!(upload.is_complete());
    let error = upload
        .put(part("bytes 6-9/10"), body(&[Ok("ghij")]))
        .await
        .unwrap_err();
    assert!(matches!(error, PutError::Closed), "{error}");
    upload.watch(Duration::from_secs(60)).await.unwrap();
    assert_eq!(all(receiver).await.unwrap(), "abcdefghij");
}

#[tokio::test]
async fn without_ranges_the_body_is_everything() {
    let (upload, receiver, _) = upload();
    let whole = Part::parse(None, None).unwrap();
    assert!(
        upload
            .put(whole, body(&[Ok("abc"), Ok("def")]))
            .await
            .unwrap()
    );
    assert_eq!(all(receiver).await.unwrap(), "abcdef");
}

#[tokio::test]
async fn a_stream_of_unknown_length_is_ended_by_word() {
    let (upload, receiver, _) = upload();
    assert!(
        !upload
            .put(part("bytes 0-2/*"), body(&[Ok("abc")]))
            .await
            .unwrap()
    );
    assert!(!upload.is_complete());
    assert!(upload.put(part("bytes */3"), body(&[])).await.unwrap());
    assert_eq!(all(receiver).await.unwrap(), "abc");
}

#[tokio::test]
async fn a_body_must_be_as_long_as_its_range() {
    for chunks in [&[Ok("ab")][..], &[Ok("abcd")]] {
        let (upload, receiver, _) = upload();
        let error = upload
            .put(part("bytes 0-2/3"), body(chunks))
            .await
            .unwrap_err();
        assert!(matches!(error, PutError::Length(_)), "{error}");
        upload.give_up().await;
        let error = all(receiver).await.unwrap_err();
        assert_eq!(error.to_string(), "the source broke off before its end");
    }
}

#[tokio::test]
async fn a_newer_connection_takes_over_from_a_dead_one() {
    let (upload, receiver, _) = upload();
    let first = Arc::clone(&upload);
    let silent = async move {
        let body = stream::iter([Ok::<_, ()>(Bytes::from_static(b"ab"))]).chain(stream::pending());
        first.put(part("bytes 0-9/10"), Box::pin(body)).await
    };
    let dead = tokio::spawn(silent);
    while upload.progress.received() < 2 {
        tokio::task::yield_now().await;
    }
    assert!(
        upload
            .put(part("bytes 2-9/10"), body(&[Ok("cdefghij")]))
            .await
            .unwrap()
    );
    let error = dead.await.unwrap().unwrap_err();
    assert!(matches!(error, PutError::Broken(2)), "{error}");
    assert_eq!(all(receiver).await.unwrap(), "abcdefghij");
}

#[tokio::test]
async fn an_upload_that_nobody_continues_is_given_up() {
    let (upload, _receiver, _) = upload();
    upload
        .put(part("bytes 0-2/9"), body(&[Ok("abc")]))
        .await
        .unwrap();
    let error = upload.watch(Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, IngestError::Cancelled(_)), "{error}");
    upload.give_up().await;
    let error = upload
        .put(part("bytes 3-8/9"), body(&[Ok("defghi")]))
        .await
        .unwrap_err();
    assert!(matches!(error, PutError::Closed), "{error}");
}
