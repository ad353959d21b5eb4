//! The one mapping between error classes and `google.rpc.Code` (spec 01 §0.6) for this transport.

use corten_types::{Error, ErrorClass};

use crate::Status;

/// The status that carries `error` over the wire.
#[must_use]
pub fn status_of(error: &Error) -> Status {
    Status { code: code_of(error.class()), message: error.message().to_owned() }
}

/// The error that a status means, its text exactly as it came. FailedPrecondition stands for three
/// classes, told apart by the end of the text.
#[must_use]
pub fn error_of(status: &Status) -> Error {
    let message = &status.message;
    let ends_with = |class: ErrorClass| {
        message.strip_suffix(class.text()).is_some_and(|rest| rest.is_empty() || rest.ends_with(": "))
    };
    let class = match status.code {
        1 => ErrorClass::Canceled,
        3 => ErrorClass::InvalidArgument,
        4 => ErrorClass::DeadlineExceeded,
        5 => ErrorClass::NotFound,
        6 => ErrorClass::AlreadyExists,
        7 => ErrorClass::PermissionDenied,
        8 => ErrorClass::ResourceExhausted,
        9 if ends_with(ErrorClass::Conflict) => ErrorClass::Conflict,
        9 if ends_with(ErrorClass::NotModified) => ErrorClass::NotModified,
        9 => ErrorClass::FailedPrecondition,
        10 => ErrorClass::Aborted,
        11 => ErrorClass::OutOfRange,
        12 => ErrorClass::NotImplemented,
        13 => ErrorClass::Internal,
        14 => ErrorClass::Unavailable,
        15 => ErrorClass::DataLoss,
        16 => ErrorClass::Unauthenticated,
        _ => ErrorClass::Unknown,
    };
    Error::bare(class, message)
}

fn code_of(class: ErrorClass) -> i32 {
    match class {
        ErrorClass::Canceled => 1,
        ErrorClass::Unknown => 2,
        ErrorClass::InvalidArgument => 3,
        ErrorClass::DeadlineExceeded => 4,
        ErrorClass::NotFound => 5,
        ErrorClass::AlreadyExists => 6,
        ErrorClass::PermissionDenied => 7,
        ErrorClass::ResourceExhausted => 8,
        ErrorClass::FailedPrecondition | ErrorClass::Conflict | ErrorClass::NotModified => 9,
        ErrorClass::Aborted => 10,
        ErrorClass::OutOfRange => 11,
        ErrorClass::NotImplemented => 12,
        ErrorClass::Internal => 13,
        ErrorClass::Unavailable => 14,
        ErrorClass::DataLoss => 15,
        ErrorClass::Unauthenticated => 16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_survives_the_wire() {
        use ErrorClass::*;
        for class in [
            InvalidArgument,
            NotFound,
            AlreadyExists,
            PermissionDenied,
            ResourceExhausted,
            FailedPrecondition,
            Conflict,
            NotModified,
            Aborted,
            OutOfRange,
            NotImplemented,
            Internal,
            Unavailable,
            DataLoss,
            Unauthenticated,
            DeadlineExceeded,
            Canceled,
            Unknown,
        ] {
            let sent = Error::new(class, "what happened");
            let received = error_of(&status_of(&sent));
            assert_eq!(received.class(), class);
            assert_eq!(received.message(), sent.message());
        }
    }
}
