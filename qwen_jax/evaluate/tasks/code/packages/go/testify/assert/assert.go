// Package assert stands in for testify's: the assertions of HumanEvalPack's tests.
package assert

import (
	"bytes"
	"reflect"
	"testing"
)

// Assertions fails a test.
type Assertions struct{ t *testing.T }

// New returns the assertions of a test.
func New(t *testing.T) *Assertions { return &Assertions{t} }

// Equal fails the test unless both values have one type and are deeply equal.
func (a *Assertions) Equal(expected, actual interface{}, _ ...interface{}) bool {
	a.t.Helper()
	first, isBytes := expected.([]byte)
	second, areBytes := actual.([]byte)
	if isBytes && areBytes && first != nil && second != nil && bytes.Equal(first, second) {
		return true
	}
	if reflect.DeepEqual(expected, actual) {
		return true
	}
	a.t.Errorf("not equal: expected %#v, actual %#v", expected, actual)
	return false
}
