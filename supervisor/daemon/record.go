package daemon

func (d *daemon) writeRecord(p *process)  {}
func (d *daemon) removeRecord(p *process) {}
func (d *daemon) writeEngine()            {}
func (d *daemon) removeEngine()           {}
