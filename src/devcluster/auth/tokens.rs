//! Service account tokens: signed here, checked here, bound to objects that must still exist.

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::User;

/// Issuer and default audience, as a cluster without further configuration has them.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Signs and checks tokens.
pub(crate) struct Tokens {
    sign: EncodingKey,
    check: DecodingKey,
}

/// A token's claims.
#[derive(Debug, Serialize, Deserialize, Clone, PartialEq)]
pub(crate) struct Claims {
    pub(crate) aud: Vec<String>,
    pub(crate) exp: i64,
    pub(crate) iat: i64,
    pub(crate) nbf: i64,
    pub(crate) iss: String,
    pub(crate) jti: String,
    pub(crate) sub: String,
    #[serde(rename = "kubernetes.io")]
    pub(crate) bound: Bound,
}

/// The private claims: what the token is bound to.
#[derive(Debug, Serialize, Deserialize, Clone, PartialEq, Default)]
pub(crate) struct Bound {
    pub(crate) namespace: String,
    pub(crate) serviceaccount: Reference,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) secret: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) node: Option<Reference>,
}

/// Name and uid of an object.
#[derive(Debug, Serialize, Deserialize, Clone, PartialEq, Default)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl Tokens {
    pub(crate) fn new(key: &KeyPair) -> Result<Self, jsonwebtoken::errors::Error> {
        Ok(Self {
            sign: EncodingKey::from_ec_pem(key.serialize_pem().as_bytes())?,
            check: DecodingKey::from_ec_pem(key.public_key_pem().as_bytes())?,
        })
    }

    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, jsonwebtoken::errors::Error> {
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &self.sign)
    }

    /// Claims of a token with a good signature, in its time and for one of `audiences`.
    pub(crate) fn check(&self, token: &str, audiences: &[&str]) -> Result<Claims, String> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(audiences);
        validation.set_issuer(&[ISSUER]);
        validation.validate_nbf = true;
        match jsonwebtoken::decode::<Claims>(token, &self.check, &validation) {
            Ok(data) => Ok(data.claims),
            Err(error) => Err(match error.kind() {
                ErrorKind::InvalidAudience => {
                    validation.validate_aud = false;
                    let read = jsonwebtoken::decode::<Claims>(token, &self.check, &validation);
                    let given = read.map(|read| read.claims.aud).unwrap_or_default();
                    let shown = |list: &[String]| {
                        list.iter().map(|audience| format!("{audience:?}")).collect::<Vec<_>>().join(" ")
                    };
                    let wanted: Vec<String> = audiences.iter().map(|audience| (*audience).to_owned()).collect();
                    format!(
                        "[invalid bearer token, token audiences [{}] is invalid for the target audiences [{}]]",
                        shown(&given),
                        shown(&wanted)
                    )
                }
                ErrorKind::InvalidToken => "invalid bearer token".to_owned(),
                _ => format!("[invalid bearer token, {error}]"),
            }),
        }
    }
}

impl Claims {
    /// The user, when `uid_of(group-less plural, namespace, name)` still knows all that the token is bound to.
    pub(crate) fn user(&self, uid_of: impl Fn(&str, &str, &str) -> Option<String>) -> Result<User, String> {
        let bound = &self.bound;
        let checks = [
            ("serviceaccounts", Some(&bound.serviceaccount), &*bound.namespace),
            ("pods", bound.pod.as_ref(), &*bound.namespace),
            ("secrets", bound.secret.as_ref(), &*bound.namespace),
        ];
        for (plural, reference, namespace) in checks {
            if let Some(reference) = reference
                && uid_of(plural, namespace, &reference.name).as_deref() != Some(&reference.uid)
            {
                return Err(format!("[invalid bearer token, service account token has been invalidated: {plural}]"));
            }
        }
        let mut user = User {
            name: format!("system:serviceaccount:{}:{}", bound.namespace, bound.serviceaccount.name),
            uid: bound.serviceaccount.uid.clone(),
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{}", bound.namespace),
                "system:authenticated".into(),
            ],
            ..User::default()
        };
        let mut extra = |key: &str, value: &str| {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.into()]);
        };
        extra("credential-id", &format!("JTI={}", self.jti));
        for (kind, reference) in [("pod", &bound.pod), ("node", &bound.node)] {
            if let Some(reference) = reference {
                extra(&format!("{kind}-name"), &reference.name);
                extra(&format!("{kind}-uid"), &reference.uid);
            }
        }
        Ok(user)
    }
}

/// Audiences of a request's spec, or the API server's own.
pub(crate) fn audiences(spec: &Value) -> Vec<String> {
    let asked: Vec<String> =
        spec["audiences"].as_array().into_iter().flatten().filter_map(|a| a.as_str().map(Into::into)).collect();
    if asked.is_empty() { vec![ISSUER.into()] } else { asked }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(exp: i64) -> Claims {
        let sa = Reference { name: "sa".into(), uid: "u".into() };
        Claims {
            aud: vec![ISSUER.into()],
            exp,
            iat: 0,
            nbf: 0,
            iss: ISSUER.into(),
            jti: "j".into(),
            sub: "system:serviceaccount:ns:sa".into(),
            bound: Bound { namespace: "ns".into(), serviceaccount: sa, ..Bound::default() },
        }
    }

    #[test]
    fn only_our_own_unexpired_tokens_for_us_are_accepted() {
        let tokens = Tokens::new(&KeyPair::generate().unwrap()).unwrap();
        let good = tokens.sign(&claims(4_000_000_000)).unwrap();
        assert!(tokens.check(&good, &[ISSUER]).is_ok());
        assert!(tokens.check(&good, &["other"]).is_err());
        assert!(tokens.check(&tokens.sign(&claims(1)).unwrap(), &[ISSUER]).is_err());
        assert!(tokens.check("rubbish", &[ISSUER]).is_err());
        let foreign = Tokens::new(&KeyPair::generate().unwrap()).unwrap();
        assert!(foreign.check(&good, &[ISSUER]).is_err());
    }

    #[test]
    fn a_token_dies_with_its_service_account() {
        let claims = claims(4_000_000_000);
        assert!(claims.user(|_, _, _| Some("u".into())).is_ok());
        assert!(claims.user(|_, _, _| Some("another".into())).is_err());
        assert!(claims.user(|_, _, _| None).is_err());
    }
}
