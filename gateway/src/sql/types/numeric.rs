//! `numeric`: exact decimals of up to 76 digits, a 256-bit integer and a scale, which is what Arrow's decimals hold too.
//!
//! A value keeps the scale that it was written with, so `1.50` prints as `1.50`. No NaN, no infinities: they are refused
//! with `0A000`.

use std::cmp::Ordering;
use std::fmt;

use datafusion::arrow::datatypes::i256;

use crate::sql::error::{SqlError, code};

/// Most digits a numeric may have.
pub const DIGITS_MAX: u32 = 76;

/// An exact decimal: `unscaled / 10^scale`.
#[derive(Clone, Copy, Debug)]
pub struct Numeric {
    /// The digits as an integer.
    pub unscaled: i256,
    /// How many of them stand behind the point.
    pub scale: u8,
}

/// Most digits behind the point of a quotient.
const QUOTIENT_DIGITS_MAX: i32 = 28;

fn power(exponent: u32) -> Option<i256> {
    if exponent > DIGITS_MAX { None } else { i256::from_i128(10).checked_pow(exponent) }
}

impl Numeric {
    /// An integer.
    #[must_use]
    pub const fn from_i64(value: i64) -> Numeric {
        Numeric { unscaled: i256::from_i128(value as i128), scale: 0 }
    }

    /// From an integer of 128 bits and a scale.
    #[must_use]
    pub const fn from_i128(value: i128, scale: u8) -> Numeric {
        Numeric { unscaled: i256::from_i128(value), scale }
    }

    /// Reads PostgreSQL's text form: digits, a point, an exponent.
    ///
    /// # Errors
    /// `22P02` when it is no number, `22003` when it has more than 76 digits, `0A000` for NaN and the infinities.
    pub fn parse(text: &str) -> Result<Numeric, SqlError> {
        let invalid =
            || SqlError::new(code::INVALID_TEXT_REPRESENTATION, format!("invalid input syntax for type numeric: \"{text}\""));
        let trimmed = text.trim();
        let (negative, digits) = match trimmed.as_bytes().first() {
            Some(b'-') => (true, &trimmed[1..]),
            Some(b'+') => (false, &trimmed[1..]),
            Some(_) => (false, trimmed),
            None => return Err(invalid()),
        };
        if ["nan", "infinity", "inf"].iter().any(|word| digits.eq_ignore_ascii_case(word)) {
            return Err(SqlError::unsupported("a numeric NaN or infinity"));
        }
        let (mantissa, exponent) = match digits.find(['e', 'E']) {
            Some(at) => (&digits[..at], digits[at + 1..].parse::<i32>().map_err(|_| invalid())?),
            None => (digits, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        if whole.is_empty() && fraction.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
            return Err(invalid());
        }
        let overflow = || SqlError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, "value overflows numeric format");
        let mut unscaled = i256::ZERO;
        let mut small: i128 = 0;
        let mut count = 0u32;
        for digit in whole.bytes().chain(fraction.bytes()) {
            let digit = i128::from(digit - b'0');
            if count < 36 {
                small = small * 10 + digit;
            } else {
                if count == 36 {
                    unscaled = i256::from_i128(small);
                }
                unscaled = unscaled
                    .checked_mul(i256::from_i128(10))
                    .and_then(|v| v.checked_add(i256::from_i128(digit)))
                    .ok_or_else(overflow)?;
            }
            if count > 0 || digit != 0 {
                count += 1;
            }
        }
        if count <= 36 {
            unscaled = i256::from_i128(small);
        }
        let scale = i64::try_from(fraction.len()).map_err(|_| overflow())? - i64::from(exponent);
        let scale = if scale < 0 {
            let factor = u32::try_from(-scale).ok().and_then(power).ok_or_else(overflow)?;
            unscaled = unscaled.checked_mul(factor).ok_or_else(overflow)?;
            0
        } else {
            u8::try_from(scale).ok().filter(|s| u32::from(*s) <= DIGITS_MAX).ok_or_else(overflow)?
        };
        if negative {
            unscaled = unscaled.wrapping_neg();
        }
        Ok(Numeric { unscaled, scale })
    }

    /// From a float, by its shortest decimal form.
    ///
    /// # Errors
    /// As [`Numeric::parse`].
    pub fn from_f64(value: f64) -> Result<Numeric, SqlError> {
        Numeric::parse(&format!("{value:e}"))
    }

    /// The nearest float.
    #[must_use]
    pub fn to_f64(self) -> f64 {
        self.to_string().parse().unwrap_or(f64::NAN)
    }

    /// The same value with `scale` digits behind the point, rounded half away from zero; `None` when it has too many digits.
    #[must_use]
    pub fn rescale(self, scale: u8) -> Option<Numeric> {
        match scale.cmp(&self.scale) {
            Ordering::Equal => Some(self),
            Ordering::Greater => {
                let unscaled = self.unscaled.checked_mul(power(u32::from(scale - self.scale))?)?;
                Some(Numeric { unscaled, scale })
            }
            Ordering::Less => {
                let factor = power(u32::from(self.scale - scale))?;
                let half = factor.checked_div(i256::from_i128(2))?;
                let shifted = if self.unscaled.is_negative() {
                    self.unscaled.checked_sub(half)?
                } else {
                    self.unscaled.checked_add(half)?
                };
                Some(Numeric { unscaled: shifted.checked_div(factor)?, scale })
            }
        }
    }

    /// Applies `numeric(precision, scale)`.
    ///
    /// # Errors
    /// `22003` with PostgreSQL's detail when it does not fit.
    pub fn fit(self, precision: u8, scale: i8) -> Result<Numeric, SqlError> {
        let overflow = || {
            let room = i32::from(precision) - i32::from(scale);
            SqlError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, "numeric field overflow").with_detail(format!(
                "A field with precision {precision}, scale {scale} must round to an absolute value less than {}.",
                if room == 0 { "1".to_owned() } else { format!("10^{room}") }
            ))
        };
        let fitted = self.rescale(scale.max(0) as u8).ok_or_else(overflow)?;
        let limit = power(u32::from(precision)).ok_or_else(overflow)?;
        if fitted.unscaled.wrapping_abs() >= limit { Err(overflow()) } else { Ok(fitted) }
    }

    /// As an integer, rounded half away from zero; `None` when it does not fit into 64 bits.
    #[must_use]
    pub fn to_i64(self) -> Option<i64> {
        self.rescale(0)?.unscaled.to_i128().and_then(|v| i64::try_from(v).ok())
    }

    /// Sum; `None` on more than 76 digits.
    #[must_use]
    pub fn checked_add(self, other: Numeric) -> Option<Numeric> {
        let scale = self.scale.max(other.scale);
        let (a, b) = (self.rescale(scale)?, other.rescale(scale)?);
        Some(Numeric { unscaled: a.unscaled.checked_add(b.unscaled)?, scale })
    }

    /// Difference; `None` on more than 76 digits.
    #[must_use]
    pub fn checked_sub(self, other: Numeric) -> Option<Numeric> {
        self.checked_add(Numeric { unscaled: other.unscaled.checked_neg()?, scale: other.scale })
    }

    /// Product; `None` on more than 76 digits.
    #[must_use]
    pub fn checked_mul(self, other: Numeric) -> Option<Numeric> {
        let scale = self.scale.checked_add(other.scale)?;
        Some(Numeric { unscaled: self.unscaled.checked_mul(other.unscaled)?, scale })
    }

    /// Where the first digit of base 10,000 stands (0: just before the point) and that digit, as PostgreSQL's numerics are
    /// made of them; also whether nothing follows it. Zero has a zero at 0.
    fn leading(self) -> (i32, u32, bool) {
        let digits = self.unscaled.wrapping_abs().to_string();
        if digits == "0" {
            return (0, 0, true);
        }
        let exponent = digits.len() as i32 - i32::from(self.scale);
        let weight = (exponent - 1).div_euclid(4);
        let length = (exponent - 4 * weight) as usize;
        let group: String = digits.chars().chain(std::iter::repeat('0')).take(length).collect();
        (weight, group.parse().unwrap_or(0), digits.bytes().skip(length).all(|digit| digit == b'0'))
    }

    /// The digits behind the point that PostgreSQL's division gives (`select_div_scale`): 16 significant ones at least.
    fn quotient_scale(self, other: Numeric) -> u8 {
        let ((weight, first, _), (other_weight, other_first, _)) = (self.leading(), other.leading());
        let estimate = weight - other_weight - i32::from(first <= other_first);
        let scale = (16 - estimate * 4).max(i32::from(self.scale)).max(i32::from(other.scale));
        scale.clamp(0, QUOTIENT_DIGITS_MAX) as u8
    }

    /// The quotient, with as many digits as PostgreSQL's.
    ///
    /// # Errors
    /// `22012`, `22003`.
    pub fn divided_by(self, other: Numeric) -> Result<Numeric, SqlError> {
        if other.unscaled == i256::ZERO {
            return Err(SqlError::new(code::DIVISION_BY_ZERO, "division by zero"));
        }
        let overflow = || SqlError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, "value overflows numeric format");
        let scale = self.quotient_scale(other);
        // One digit more than asked, then rounded; where 76 digits do not hold that, fewer.
        let shift = i32::from(scale) + 1 + i32::from(other.scale) - i32::from(self.scale);
        let (mut above, mut below) = (self.unscaled, other.unscaled);
        if shift >= 0 {
            above = power(shift as u32).and_then(|factor| above.checked_mul(factor)).ok_or_else(overflow)?;
        } else {
            below = power(shift.unsigned_abs()).and_then(|factor| below.checked_mul(factor)).ok_or_else(overflow)?;
        }
        let unscaled = above.checked_div(below).ok_or_else(overflow)?;
        Numeric { unscaled, scale: scale + 1 }.rescale(scale).ok_or_else(overflow)
    }

    /// A quotient with the digits that PostgreSQL's division most likely gave it, told by its size alone.
    #[must_use]
    pub fn as_quotient(self) -> Numeric {
        let (weight, first, alone) = self.leading();
        let weight = weight - i32::from(first <= 1 && alone);
        let scale = (16 - weight * 4).clamp(0, QUOTIENT_DIGITS_MAX);
        self.rescale(scale as u8).unwrap_or(self)
    }

    /// The same value without zeros at the end of its fraction.
    #[must_use]
    pub fn normalized(self) -> Numeric {
        let ten = i256::from_i128(10);
        let mut value = self;
        while value.scale > 0 && value.unscaled.wrapping_rem(ten) == i256::ZERO {
            value = Numeric { unscaled: value.unscaled.wrapping_div(ten), scale: value.scale - 1 };
        }
        value
    }
}

impl PartialEq for Numeric {
    fn eq(&self, other: &Numeric) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Numeric {}

impl PartialOrd for Numeric {
    fn partial_cmp(&self, other: &Numeric) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Numeric {
    fn cmp(&self, other: &Numeric) -> Ordering {
        if self.scale == other.scale {
            return self.unscaled.cmp(&other.unscaled);
        }
        let (a, b) = (self.normalized(), other.normalized());
        let scale = a.scale.max(b.scale);
        match (a.rescale(scale), b.rescale(scale)) {
            (Some(a), Some(b)) => a.unscaled.cmp(&b.unscaled),
            // The one that cannot take more digits is the larger in magnitude.
            (None, _) => {
                if a.unscaled.is_negative() {
                    Ordering::Less
                } else {
                    Ordering::Greater
                }
            }
            (_, None) => {
                if b.unscaled.is_negative() {
                    Ordering::Greater
                } else {
                    Ordering::Less
                }
            }
        }
    }
}

impl fmt::Display for Numeric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = match self.unscaled.to_i128() {
            Some(small) => small.unsigned_abs().to_string(),
            None => self.unscaled.wrapping_abs().to_string(),
        };
        if self.unscaled.is_negative() {
            f.write_str("-")?;
        }
        let scale = usize::from(self.scale);
        if scale == 0 {
            return f.write_str(&digits);
        }
        if digits.len() > scale {
            let (whole, fraction) = digits.split_at(digits.len() - scale);
            write!(f, "{whole}.{fraction}")
        } else {
            write!(f, "0.{digits:0>scale$}")
        }
    }
}
