//! `POST /v1/responses`, plain and streamed, against any provider: [`request`] reads it as a chat request, [`reply`] and [`stream`]
//! write the answer back; [`items`] and [`seal`] are about conversations. Nothing is kept between calls: `previous_response_id`, `conversation` and `background` are refused.

pub(super) mod items;
mod reply;
mod request;
mod seal;
mod stream;

use crate::gateway::entry::Entry;
use crate::gateway::error::ApiError;
use crate::gateway::{Gateway, answer};
use crate::inference::Answer;
use axum::extract::{Request, State};
use axum::response::Response;

/// The handler.
pub async fn create(State(gateway): State<Gateway>, request: Request) -> Result<Response, ApiError> {
    let entry = Entry::of(&gateway, request, "responses")?;
    let (gateway, ask, request::Read { chat, echoed, names }) = entry.read(|fields, _| request::to_chat(fields)).await?;
    let frame = reply::Frame::new(echoed, &chat.model);
    let encoder = stream::Events::new(frame.clone(), names.clone());
    let whole = move |answer: Answer| {
        let mut frame = frame;
        frame.rendered(answer.prompt.as_deref());
        frame.of_chat(&answer.response)
    };
    answer::chat(&gateway, ask, chat, whole, encoder).await.map_err(|ApiError(failure)| names.told(failure).into())
}
