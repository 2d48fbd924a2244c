package allocation

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestPodsBeginByRank(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := NewOrder(map[string]int64{"first": 10, "second": 5, "other": 5, "last": 0}, time.Minute)
		defer o.Stop()
		woken := map[string]bool{}
		turn := func(uid string) bool { return o.Turn(uid, func() { woken[uid] = true }) }
		if !turn("first") || !turn("new") || turn("second") || turn("last") {
			t.Error("not by rank")
		}
		o.Begun("first")
		if !woken["second"] || woken["last"] || !turn("second") || !turn("other") || turn("last") {
			t.Errorf("woken after the first: %v", woken)
		}
		o.Begun("second")
		if turn("last") {
			t.Error("other is not waited for")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if !woken["last"] || !turn("last") {
			t.Error("other is waited for without end")
		}
	})
}
